// A receiver of webhooks for Node 18 or newer, without packages.
//
//   CALLBACK_SECRET=whsec_... node receiver.mjs

import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const key = Buffer.from(process.env.CALLBACK_SECRET.replace("whsec_", ""), "base64");

function isSigned(headers, body) {
  const timestamp = headers["webhook-timestamp"] ?? "";
  if (!(Math.abs(Date.now() / 1000 - Number(timestamp)) < 300)) return false;
  const expected = createHmac("sha256", key)
    .update(`${headers["webhook-id"]}.${timestamp}.`)
    .update(body)
    .digest();
  return (headers["webhook-signature"] ?? "").split(" ").some((signature) => {
    const [version, text] = signature.split(",");
    const received = Buffer.from(text ?? "", "base64");
    const isV1 = version === "v1" && received.length === expected.length;
    return isV1 && timingSafeEqual(received, expected);
  });
}

createServer(async (request, response) => {
  const parts = [];
  for await (const part of request) parts.push(part);
  const body = Buffer.concat(parts);
  if (!isSigned(request.headers, body)) {
    response.writeHead(400).end();
    return;
  }
  const task = JSON.parse(body);
  console.log(task.name, task.status, JSON.stringify(task.output));
  response.writeHead(204).end();
}).listen(9000, "127.0.0.1");
