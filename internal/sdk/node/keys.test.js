import assert from 'node:assert/strict';
import {test} from 'node:test';
import {client, conflicts, refused, replayed, sale} from './box.js';

const stripe = client();

test('a key again is the same charge, and with something else an error', async () => {
  const idempotencyKey = 'receipt-1';
  const made = await stripe.charges.create(sale(1999), {idempotencyKey});
  const again = await stripe.charges.create(sale(1999), {idempotencyKey});
  assert.equal(again.id, made.id);
  assert.equal(again.lastResponse.idempotencyKey, idempotencyKey);
  assert.ok(replayed(again) && !replayed(made));
  await refused(stripe.charges.create(sale(2000), {idempotencyKey}), 'StripeIdempotencyError', {statusCode: 400, rawType: 'idempotency_error'});
  await refused(stripe.refunds.create({charge: made.id}, {idempotencyKey}), 'StripeIdempotencyError', {statusCode: 400});
});

// The SDK repeats a 409 by itself: nobody has to know that there was one. The box does.
test('many tills with one key get one charge', async () => {
  // The SDK does not read an answer that it repeats the request of, and so keeps the connection, and this process, until its time limit.
  const tills = client(undefined, {maxNetworkRetries: 5, timeout: 3000});
  let rounds = 0;
  for (; (await conflicts()) === 0 && rounds < 50; rounds++) {
    const idempotencyKey = `tills-${rounds}`;
    const made = await Promise.all(Array.from({length: 48}, () => tills.charges.create(sale(700), {idempotencyKey})));
    assert.equal(new Set(made.map((c) => c.id)).size, 1);
    assert.equal(made.filter((c) => !replayed(c)).length, 1);
  }
  assert.ok((await conflicts()) > 0, 'nobody came while a key was in use');
  const all = [];
  for await (const charge of stripe.charges.list({limit: 100})) if (charge.amount === 700) all.push(charge.id);
  assert.equal(all.length, rounds);
});

test('a conflict reaches a client that repeats nothing', async () => {
  const once = client(undefined, {maxNetworkRetries: 0});
  let refusals = [];
  for (let round = 0; refusals.length === 0 && round < 50; round++) {
    const idempotencyKey = `once-${round}`;
    const answers = await Promise.allSettled(Array.from({length: 48}, () => once.charges.create(sale(800), {idempotencyKey})));
    refusals = answers.filter((a) => a.status === 'rejected').map((a) => a.reason);
    assert.equal(new Set(answers.filter((a) => a.status === 'fulfilled').map((a) => a.value.id)).size, 1);
  }
  assert.ok(refusals.length > 0, 'nobody came while a key was in use');
  for (const e of refusals) {
    assert.equal(e.type, 'StripeAPIError'); // the SDK's class for any 409
    assert.equal(e.rawType, 'idempotency_error');
    assert.equal(e.statusCode, 409);
    assert.equal(e.code, 'idempotency_key_in_use');
    assert.ok(Number(e.headers['retry-after']) > 0);
  }
});
