// Reads calls as JSON from standard input, makes them one after the other with Stripe's
// own Node client, and writes their outcomes as JSON to standard output.

import { createRequire } from "node:module";
import { text } from "node:stream/consumers";

const { folder, baseUrl, key, retries, calls } = JSON.parse(await text(process.stdin));
const Stripe = createRequire(folder + "/")("stripe");
const url = new URL(baseUrl);
const stripe = new Stripe(key, {
  host: url.hostname,
  port: url.port,
  protocol: "http",
  maxNetworkRetries: retries,
  telemetry: false,
});
// Retries have no delay.
stripe.getInitialNetworkRetryDelay = () => 0;
stripe.getMaxNetworkRetryDelay = () => 0;

const refunds = stripe.refunds;
const actions = {
  cancel: (...given) => refunds.cancel(...given),
  retrieve: (...given) => refunds.retrieve(...given),
  list: (...given) => refunds.list(...given),
  everything: (...given) =>
    refunds.list(...given).autoPagingToArray({ limit: 10000 }),
  expire: (...given) => stripe.testHelpers.refunds.expire(...given),
};

async function outcome([name, ...given]) {
  try {
    const found = await actions[name](...given);
    return { found, headers: found.lastResponse?.headers ?? null };
  } catch (error) {
    return {
      raised: error.constructor.name,
      status: error.statusCode ?? null,
      code: error.code ?? null,
      param: error.param ?? null,
      requestId: error.requestId ?? null,
      headers: error.headers ?? null,
      message: error.message,
    };
  }
}

const outcomes = [];
for (const call of calls) outcomes.push(await outcome(call));
// At once: the client leaves the timer of an answer that it tried again after running.
process.stdout.write(JSON.stringify(outcomes), () => process.exit(0));
