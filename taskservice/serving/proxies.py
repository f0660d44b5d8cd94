"""Behind trusted reverse proxies: who asked, and by which scheme, host and prefix."""

from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.middleware.proxy_fix import ProxyFix

Application = Callable[..., Iterable[bytes]]


def trust_proxies(application: Application, hops: int) -> Application:
    """Let `X-Forwarded-*` of so many proxies count.

    `-For`, `-Proto` and `-Host` grow by a value at each proxy, so the N-th from the right
    is the outermost trusted one's. `-Prefix` is often set by the outermost alone.
    """
    fixed = ProxyFix(application, x_for=hops, x_proto=hops, x_host=hops)

    def with_prefix(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        prefix = _prefix(environ.get("HTTP_X_FORWARDED_PREFIX", ""), hops)
        if prefix is not None:
            environ["SCRIPT_NAME"] = prefix
        return fixed(environ, start_response)

    return with_prefix


def _prefix(header: str, hops: int) -> str | None:
    values = [value.strip() for value in header.split(",")]
    outermost = values[-hops] if len(values) >= hops else values[0]
    # A path of this host; `//other.example` would be another one.
    is_path = outermost.startswith("/") and not outermost.startswith("//")
    return outermost.rstrip("/") if is_path else None
