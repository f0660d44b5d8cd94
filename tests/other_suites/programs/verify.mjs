// Verifies a webhook from stdin with each library, and prints what each of them says.
import { readFileSync } from "node:fs";
import * as standardwebhooks from "standardwebhooks";
import * as svix from "svix";

const { secret, headers, body } = JSON.parse(readFileSync(0, "utf8"));
const verdicts = {};
for (const [name, { Webhook }] of Object.entries({ standardwebhooks, svix })) {
  try {
    new Webhook(secret).verify(body, headers);
    verdicts[name] = JSON.parse(body).id;
  } catch (error) {
    verdicts[name] = error.message;
  }
}
console.log(JSON.stringify(verdicts));
