"""The list of agents, the agent page, and its forms."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from flask import Blueprint, Response, request
from marshmallow import ValidationError

from taskservice.auth import caller
from taskservice.dashboard import chart, schema_form
from taskservice.dashboard.formatting import outcome_of
from taskservice.dashboard.pages import (
    attention_items,
    first_texts,
    page,
    redirect_to,
    redirect_to_page,
    texts,
)
from taskservice.dashboard.schema_form import InputForm
from taskservice.database import clock
from taskservice.database.rows import AgentRow, TaskRow
from taskservice.errors import Problem
from taskservice.quantities import typed, typed_seconds
from taskservice.schemas import strict_json
from taskservice.schemas.fields import parse_id
from taskservice.schemas.requests import PutAgentSchema, StartSchema
from taskservice.services import agents as agent_service
from taskservice.services import attention, lists, tasks
from taskservice.services.expected_runs import due_times
from taskservice.services.lists import Selection, TaskList
from taskservice.services.tasks import Idempotency
from taskservice.terms import (
    BROKEN,
    CALLBACK_FAILED,
    CANCELLED,
    FAILED,
    HANGING,
    LATE,
    NO_WORKER,
    TIMEOUT,
)

blueprint = Blueprint("agents", __name__)

_put_schema, _start_schema = PutAgentSchema(), StartSchema()

PAGE_SIZE = 50
MAX_PAGE = 1_000_000
WORST_FIRST = (HANGING, BROKEN, LATE, NO_WORKER, CALLBACK_FAILED)
# The numbers of listed tasks and plotted runs on the agent page.
LISTED_TASKS = 10
PLOTTED_RUNS = 200
# The form that runs an agent shows the input of the agent's newest task if that input has at most
# this many characters.
MAX_EXAMPLE = 8_000
# An agent is marked as "fails often" if it has at least ENOUGH_RUNS runs and its success rate is
# below LOW_SUCCESS.
LOW_SUCCESS, ENOUGH_RUNS = 0.8, 5
# The fields of `expect` whose values are durations.
_DURATIONS = ("every", "grace", "maxDuration")
# Pages count waiting tasks up to this number, and then show "1,000+".
MAX_WAITING = 1_000


@blueprint.get("/agents", strict_slashes=False)
def list_all() -> Response:
    number = min(max(request.args.get("page", 1, int), 1), MAX_PAGE)
    alarms = attention.by_agent(attention_items())
    start, worst_first = (number - 1) * PAGE_SIZE, sorted(alarms, key=partial(_urgency, alarms))
    agents = agent_service.list_by_use(caller, worst_first, start, PAGE_SIZE + 1)
    shown = agents[:PAGE_SIZE]
    used = [agent for agent in shown if agent.last_used_at or agent.late_since]
    return page(
        "agents.html",
        agents=[_facts(agent, agent_service.runs(agent)) for agent in used],
        alarms=alarms,
        loads=agent_service.loads(caller, used, MAX_WAITING),
        max_waiting=MAX_WAITING,
        unused=[agent for agent in shown if agent not in used],
        is_first=number == 1,
        next=number + 1 if len(agents) > PAGE_SIZE else None,
    )


def _urgency(alarms: attention.Alarms, agent_id: str) -> tuple[bool, int]:
    """The sort key of an agent that needs attention: by urgency, with muted agents last."""
    kinds = alarms[agent_id]
    worst = min(kinds, key=WORST_FIRST.index)
    return bool(kinds[worst][0]["muted"]), WORST_FIRST.index(worst)


@blueprint.get("/agents/<agent_id>")
def show(agent_id: str) -> Response:
    agent = agent_service.get(caller, agent_id)
    expect = _stored_expect(agent)
    runs = agent_service.runs(agent, PLOTTED_RUNS)
    facts = _facts(agent, runs[-agent_service.RECENT :])
    return page(
        "agent.html",
        agent=agent,
        of=facts,
        inputs=schema_form.begun(agent.input_schema).fields,
        loads=agent_service.loads(caller, [agent], MAX_WAITING),
        max_waiting=MAX_WAITING,
        last_tasks=_last_tasks(agent.id, LISTED_TASKS),
        plot=chart.plot(runs, facts["health"]["medianSeconds"]),
        plot_height=chart.PLOT_HEIGHT,
        series=[
            chart.series(path, numbers)
            for path, numbers in agent_service.numbers_by_path(caller, agent.id).items()
            if len(numbers) >= chart.MIN_DOTS
        ],
        expect=expect or {},
        due_times=[agent.due_at, *due_times(expect, agent.due_at, 2)]
        if expect and agent.due_at
        else [],
    )


@blueprint.route("/agents/<agent_id>/edit", methods=["GET", "POST"])
def edit(agent_id: str) -> Response:
    caller.require_full_user_key()
    agent = agent_service.get(caller, agent_id)
    stored, fault = _stored_expect(agent), ""
    if request.method == "POST":
        form = first_texts(request.form)
        try:
            names = {name: form[name] for name in ("name", "description")}
            fields = _put_schema.load({**names, "expect": _expect(form)})
            if fields["expect"] == stored:
                # Setting unchanged expected runs again would clear the late state of the agent.
                del fields["expect"]
            agent_service.put(caller, agent.id, fields)
            return redirect_to("agents.show", "Saved.", agent_id=agent.id)
        except (Problem, ValidationError) as error:
            errors = schema_form.errors_of(error)
            errors |= errors.pop("expect", {})
            fault = f"Nothing was changed. {schema_form.sentence_of(errors)}"
    else:
        expect = stored or {}
        form = {"name": agent.name, "description": agent.description}
        form |= {"cron": expect.get("cron", ""), "zone": expect.get("timeZone", "")}
        form |= {name: typed(expect[name]) for name in _DURATIONS if name in expect}
    return page("edit_agent.html", 422 if fault else 200, agent=agent, form=form, fault=fault)


@blueprint.post("/agents/<agent_id>/mute")
def mute(agent_id: str) -> Response:
    """Mute an agent for the duration in the form, or unmute it if the duration is empty."""
    caller.require_full_user_key()
    form = first_texts(request.form)
    seconds = typed_seconds(form["duration"])
    muted_until = clock.now(seconds) if seconds else None
    agent_service.get(caller, agent_id)
    agent_service.put(caller, agent_id, {"mutedUntil": muted_until})
    return redirect_to_page(form["back"], "agents.show", agent_id=agent_id)


@blueprint.route("/agents/<agent_id>/run", methods=["GET", "POST"])
def run(agent_id: str) -> Response:
    caller.require_full_user_key()
    agent = agent_service.get(caller, agent_id)
    source, begun = None, schema_form.begun(agent.input_schema, is_text="json" in request.args)
    if request.method != "POST" and not begun.fields:
        newest = agent_service.newest_task(agent, MAX_EXAMPLE)
        if newest and newest.input not in (None, "{}"):
            source, begun = newest, schema_form.begun(agent.input_schema, newest.input)
    form = first_texts(request.form)
    return start_form(
        "run.html", agent, begun, partial(_start, agent), empty="{}", source=source, form=form
    )


def start_form(
    template: str,
    agent: AgentRow,
    begun: InputForm,
    start: Callable[[InputForm], Response],
    empty: str = "",
    **values: Any,
) -> Response:
    """The page with a form that starts a task. `begun` is the form that a GET request shows. A POST
    request calls `start`, and shows the submitted form again if it has errors.

    `empty` is the JSON text to use if the submitted JSON text is empty.
    """
    input_form, fault = begun, ""
    if request.method == "POST":
        input_form = schema_form.from_request(agent.input_schema, texts(request.form), empty)
        try:
            return start(input_form)
        except (Problem, ValidationError) as error:
            input_form, fault = input_form.refused(error)
    values |= {"agent": agent, "input_form": input_form, "fault": fault}
    values |= {"no_worker": attention.missing_worker(agent), "new_id": clock.new_id()}
    return page(template, 422 if fault else 200, **values)


def _start(agent: AgentRow, input_form: InputForm) -> Response:
    """Start a task from the form; submitting the same form again starts no second task. Raises 422
    with the errors of all fields.
    """
    form = first_texts(request.form)
    body: dict[str, Any] = {"agentId": agent.id, "name": form["name"] or None}
    errors: dict[str, Any] = {}
    for field, parse in (
        ("input", input_form.value),
        ("labels", lambda: schema_form.labels(form["labels"])),
    ):
        try:
            body[field] = parse()
        except ValidationError as error:
            errors |= error.messages_dict
    if errors := _start_schema.validate(body) | errors:
        raise ValidationError(errors)
    key = parse_id(form["submission_id"]) or clock.new_id()
    task, _ = tasks.start(caller, _start_schema.load(body), Idempotency.of(key, body))
    return redirect_to("tasks.show", f"Started “{task.name}”.", task_id=task.id)


def _stored_expect(agent: AgentRow) -> Any:
    return agent.expect and strict_json.loads(agent.expect.encode())


def _expect(form: dict[str, str]) -> dict[str, Any] | None:
    """The expected runs in a form, or None if there are none. Raises ValidationError."""
    cron, zone = form["cron"].strip(), form["zone"].strip()
    # The browser fills in the time zone, so it is ignored without a cron expression.
    expect: dict[str, Any] = {"cron": cron, "timeZone": zone if cron else ""}
    for name in _DURATIONS:
        text = form[name].strip()
        expect[name] = text and typed_seconds(text)
        if expect[name] is None:
            message = f"“{text[:80]}” is not a duration such as 25h."
            raise ValidationError({"expect": {name: [message]}})
    if not expect["every"] and not cron:
        # Without a schedule, the grace period has no meaning; the form may still contain an earlier
        # value.
        expect["grace"] = ""
    return {name: value for name, value in expect.items() if value != ""} or None


def _facts(agent: AgentRow, recent: Sequence[TaskRow]) -> dict[str, Any]:
    """The data that pages show about an agent, computed from its last runs."""
    health = agent_service.health(agent, recent)
    outcomes = Counter(outcome_of(task) for task in recent)
    counted = outcomes.total() - outcomes[CANCELLED]
    return {
        "agent": agent,
        "health": health,
        "strip": [(task, outcome_of(task)) for task in recent],
        "outcomes": outcomes,
        "counted": counted,
        "failures": attention.failures_text(agent.failures) if agent.state == BROKEN else None,
        "newest_failure": next(
            (task for task in reversed(recent) if outcome_of(task) in (FAILED, TIMEOUT)), None
        ),
        "fails_often": counted >= ENOUGH_RUNS and health["successRate"] < LOW_SUCCESS,
    }


def _last_tasks(agent_id: str, count: int) -> list[Any]:
    positions, _ = TaskList(caller, Selection(agentId=agent_id)).positions(None, count)
    return lists.summaries(caller, positions)
