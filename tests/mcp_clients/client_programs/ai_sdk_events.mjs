// Subscribes with the AI SDK, receives what happens to a task, and prints what its user would see.

import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [packages, url, key] = process.argv.slice(2);
const resolve = createRequire(`${packages}/`).resolve;
const { createMCPClient, experimental_createMCPEventWebhook: createMCPEventWebhook } = await import(
  pathToFileURL(resolve('@ai-sdk/mcp'))
);

const subscriptions = new Map();
const store = {
  get: async key => subscriptions.get(key),
  getById: async id => [...subscriptions.values()].find(each => each.id === id),
  set: async subscription => void subscriptions.set(subscription.key, subscription),
  update: async (key, patch) => void Object.assign(subscriptions.get(key), patch),
  delete: async key => void subscriptions.delete(key),
};

const waiting = [];
const received = [];
const receive = value => (waiting.length ? waiting.shift()(value) : received.push(value));
const next = () =>
  received.length ? received.shift() : new Promise(resolve => waiting.push(resolve));

const errors = [];
const webhook = createMCPEventWebhook({
  store,
  onEvent: async ({ subscription, event }) => receive({ id: subscription.id, event }),
  onTerminated: async ({ subscription, termination }) =>
    receive({ id: subscription.id, termination }),
  onError: error => errors.push(String(error)),
});
const server = createServer(async (incoming, outgoing) => {
  const chunks = [];
  for await (const chunk of incoming) chunks.push(chunk);
  const address = `http://127.0.0.1:${server.address().port}${incoming.url}`;
  const init = { method: incoming.method, headers: incoming.headers, body: Buffer.concat(chunks) };
  const response = await webhook(new Request(address, init));
  outgoing.writeHead(response.status, Object.fromEntries(response.headers));
  outgoing.end(Buffer.from(await response.arrayBuffer()));
});
await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));

const headers = { Authorization: `Bearer ${key}` };
const api = async (method, path, body) => {
  const response = await fetch(`${url}/api/v1${path}`, {
    method,
    headers: { ...headers, 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  });
  if (!response.ok) throw new Error(`${method} ${path}: ${await response.text()}`);
  return response.json();
};
const run = async () => {
  const { id } = await api('POST', '/task', { agentId: 'nightly', claim: true });
  return api('PATCH', `/task/${id}`, { status: 'error', error: { type: 'failed', message: 'no' } });
};
await api('PUT', '/agent/nightly', {});

const client = await createMCPClient({
  transport: { type: 'http', url: `${url}/mcp`, headers },
  experimental_events: { store },
});
const { experimental_events: events } = client;
const steps = {};
steps.listed = (await events.list()).events.map(event => event.name);
const delivery = {
  mode: 'webhook',
  url: `http://127.0.0.1:${server.address().port}/hook`,
  allowInsecureLocalhost: true,
};
steps.subscribed = await events.subscribe({
  name: 'task.failed',
  arguments: { agentId: 'nightly' },
  delivery,
  ttlMs: 3_600_000,
});
steps.failed = await run();
steps.event = await next();
steps.refreshed = await events.refresh({ id: steps.subscribed.id });
steps.failedAgain = await run();
steps.eventAgain = await next();

const other = await events.subscribe({ name: 'task.ended', delivery });
await events.unsubscribe({ id: other.id });
const hooks = await api('GET', '/hook');
steps.hooks = hooks.map(({ target, format, events }) => ({ target, format, events }));
for (const hook of hooks) await api('DELETE', `/hook/${hook.id}`);
steps.terminated = await next();
// The SDK forgets the subscription after this.
while (subscriptions.size) await new Promise(setImmediate);
steps.errors = errors;
console.log(JSON.stringify(steps));
await client.close();
server.close();
server.closeAllConnections();
