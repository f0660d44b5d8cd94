"""Takes the client, scheme, host and prefix of a request from trusted reverse proxies."""

from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.middleware.proxy_fix import ProxyFix

Application = Callable[..., Iterable[bytes]]


def trust_proxies(application: Application, hops: int) -> Application:
    """Trust the `X-Forwarded-*` headers of `hops` proxies.

    Each proxy appends a value to `-For`, `-Proto` and `-Host`, so the one that the outermost
    trusted proxy set is `hops` from the right. Often only the outermost sets `-Prefix`.
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
    # `//other.example` would be another host.
    is_path = outermost.startswith("/") and not outermost.startswith("//")
    return outermost.rstrip("/") if is_path else None
