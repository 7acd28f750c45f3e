// The box under test, and Stripe's SDK as a user of Stripe has it: the address and the key are changed, nothing else.
import assert from 'node:assert/strict';
import Stripe from 'stripe';

const {BOX_URL, BOX_KEY, BOX_OPERATOR} = process.env;
assert.ok(BOX_URL && BOX_KEY && BOX_OPERATOR, 'TestNode runs these files: `make sdk`');

export function client(key = BOX_KEY, settings = {}) {
  const {hostname: host, port} = new URL(BOX_URL);
  return new Stripe(key, {host, port, protocol: 'http', ...settings});
}

// ask sends a request of no SDK.
export async function ask(method, path, {key = BOX_KEY, body, headers = {}} = {}) {
  const answer = await fetch(BOX_URL + path, {
    method,
    headers: {Authorization: `Bearer ${key}`, ...(body && {'Content-Type': 'application/json'}), ...headers},
    body: body && JSON.stringify(body),
  });
  return {status: answer.status, headers: answer.headers, json: await answer.json()};
}

// until asks again, the next question behind the answer to the last, until ready says so; the runner's own time limit ends a wait in vain.
export async function until(ready) {
  while (!(await ready()));
}

// link takes the line away by the operator's word (offline), or gives it back (auto).
export async function link(word) {
  assert.equal((await ask('POST', `/api/v1/link/${word}`, {key: BOX_OPERATOR})).status, 200);
  const state = {offline: 'offline', auto: 'online'}[word];
  await until(async () => (await ask('GET', '/api/v1/status', {key: BOX_OPERATOR})).json.connectivity.state === state);
}

// conflicts counts the 409 that the box has answered.
export async function conflicts() {
  const text = await (await fetch(`${BOX_URL}/metrics`, {headers: {Authorization: `Bearer ${BOX_OPERATOR}`}})).text();
  assert.match(text, /^tenderbox_http_requests_total\{.*status="\d+"/m);
  const counts = [...text.matchAll(/^tenderbox_http_requests_total\{.*status="409".*\} (\d+)$/gm)];
  return counts.reduce((sum, [, n]) => sum + Number(n), 0);
}

// refused checks the error that the SDK throws: its class, and what it says.
export async function refused(call, type, want) {
  const e = await call.then((v) => assert.fail(`was not refused: ${JSON.stringify(v)}`), (e) => e);
  assert.equal(e.type, type, e.stack);
  for (const [name, value] of Object.entries(want)) assert.deepEqual(e[name], value, `${name} of ${e.message}`);
  assert.match(e.requestId, /^req_/);
  assert.ok(e.message);
  return e;
}

export const sale = (amount, source = 'tok_visa') => ({amount, currency: 'usd', source});
export const replayed = (answer) => answer.lastResponse.headers['idempotent-replayed'] === 'true';
