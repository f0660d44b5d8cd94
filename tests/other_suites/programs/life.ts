// A task's life with the client for TypeScript; prints what the service says of it at the end.
import { AgentsApi, Configuration, DeliveriesApi, LogsApi, TasksApi } from "./index.js";

declare const process: { argv: string[] };

const [basePath, apiKey, callback] = process.argv.slice(2);
const configuration = new Configuration({ basePath, apiKey });
const tasks = new TasksApi(configuration);
const logs = new LogsApi(configuration);

await new AgentsApi(configuration).putAgent({ agentId: "adder" });
const { id: taskId, input } = await tasks.startTask({
  start: { agentId: "adder", input: { numbers: [1, 2] }, callback, claim: true },
});
await logs.appendLogs({ taskId, append: { logs: ["one", "two"] } });
const sum = input["numbers"].reduce((total: number, each: number) => total + each, 0);
await tasks.reportTask({ taskId, report: { status: "complete", output: { sum } } });
const task = await tasks.getTask({ taskId });
const page = await logs.readLogs({ taskId });
const [delivery] = await new DeliveriesApi(configuration).listDeliveries({ taskId });
console.log(task.id, task.status, task.output["sum"], page.logs.join(","), delivery?.state);
