// What a program does with the types that openapi-typescript makes of /openapi.json.
import type { components, operations, webhooks } from "./taskservice.js";

type Task = components["schemas"]["Task"];
type PartialTask = components["schemas"]["PartialTask"];
type Agent = components["schemas"]["Agent"];
type Answer = { responses: { 200: { content: { "application/json": unknown } } } };
type Body<Name extends keyof operations> = operations[Name] extends Answer
  ? operations[Name]["responses"][200]["content"]["application/json"]
  : never;
type TaskEnded = webhooks["taskEnded"]["post"];
type Webhook = TaskEnded["requestBody"]["content"]["application/json"];

// Every field is there, and the three statuses are all that there are.
export function sentence(task: Task): string {
  switch (task.status) {
    case "running":
      return `${task.name}: ${Math.round((task.progress ?? 0) * 100)} %, ${task.note ?? "no note"}`;
    case "complete":
      return `${task.labels["env"]}: ${JSON.stringify(task.output["sum"])}`;
    case "error":
      return reason(task.error) + ` after ${task.logCount.toFixed()} lines`;
    default:
      return nothingElse(task.status);
  }
}

function reason(error: Task["error"]): string {
  const kind: "failed" | "cancelled" | "timeout" | undefined = error?.type;
  return `${kind ?? "unknown"}: ${error?.message ?? ""}`;
}

function nothingElse(value: never): never {
  throw new Error(value);
}

// Whatever answers a task answers a whole one.
export const answers: (
  task: Body<"getTask"> | Body<"reportTask"> | Body<"cancelTask"> | Body<"deleteTask">,
) => string = sentence;
export const titles = (tasks: Body<"listTasks">): string[] => tasks.map(sentence);
export const started = (
  task: operations["startTask"]["responses"][201]["content"]["application/json"],
): string => sentence(task);

// With `expand` it has more, with `fields` it has less: each member is then asked for.
export const owner = (task: Task): string => task.user?.name ?? task.userId;
export const narrowed = (answer: Body<"getTask">): string => {
  const part: PartialTask = answer;
  return part.status === undefined ? "not asked for" : part.status.toUpperCase();
};
export const picked = (answer: Body<"getTask">): Pick<Task, "id" | "status"> => answer;

// An agent's health, only with `expand`.
export function health(agents: Body<"listAgents">): string[] {
  return agents.map((agent: Agent) => {
    const { recent, successRate, medianSeconds } = agent.health ?? {};
    const last: "complete" | "error" | undefined = recent?.at(-1)?.status;
    return `${last} ${successRate?.toFixed(2)} ${medianSeconds?.toFixed(1)} s`;
  });
}

// A receiver: a whole task, and the headers of Standard Webhooks.
export function receive(headers: TaskEnded["parameters"]["header"], body: Webhook): string {
  const id: string = headers["webhook-id"];
  const signature: string = headers["webhook-signature"];
  const seconds: number = headers["webhook-timestamp"];
  return [id, signature, new Date(seconds * 1000).toISOString(), sentence(body)].join(" ");
}
