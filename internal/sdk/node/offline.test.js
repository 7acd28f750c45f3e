import assert from 'node:assert/strict';
import {before, test} from 'node:test';
import {client, link, sale, until} from './box.js';

const stripe = client();
const all = 130; // more than a page's maximum
let paid, ids, pi, declined, refund;

before(async () => {
  paid = await stripe.charges.create(sale(100));
  await link('offline');
});

test('offline, everything is taken and pending', async () => {
  const made = [];
  for (let i = 0; i < all; i++) made.push(await stripe.charges.create(sale(1000 + i)));
  assert.ok(made.every((c) => c.status === 'pending' && !c.paid && c.outcome === null));
  declined = await stripe.charges.create(sale(5000, 'tok_chargeDeclined'));
  assert.equal(declined.status, 'pending');
  ids = [paid, ...made, declined].map((c) => c.id).sort().reverse(); // newest first
  pi = await stripe.paymentIntents.create({amount: 800, currency: 'eur'});
  pi = await stripe.paymentIntents.confirm(pi.id, {payment_method: 'pm_card_visa'});
  assert.equal(pi.status, 'processing');
  ids.unshift(pi.latest_charge);
  ids.sort().reverse();
  refund = await stripe.refunds.create({charge: paid.id, amount: 40});
  assert.equal(refund.status, 'pending');
  const undone = await stripe.paymentIntents.create({amount: 50, currency: 'eur', payment_method: 'pm_card_visa', confirm: true});
  assert.equal((await stripe.paymentIntents.cancel(undone.id)).status, 'canceled');
  ids.push(`ch_${undone.id.slice('pi_'.length)}`);
  ids.sort().reverse();
});

test('the iterator reads every page, forwards and backwards', async () => {
  const read = async (params) => {
    const got = [];
    for await (const charge of stripe.charges.list(params)) got.push(charge.id);
    return got;
  };
  assert.deepEqual(await read({}), ids);
  assert.deepEqual(await read({limit: 100}), ids);
  assert.deepEqual(await read({limit: 7, starting_after: ids[49]}), ids.slice(50));
  assert.deepEqual(await read({limit: 50, ending_before: ids[120]}), ids.slice(0, 120).reverse());
  assert.deepEqual((await stripe.charges.list({limit: 5, ending_before: ids[20]})).data.map((c) => c.id), ids.slice(15, 20));
  assert.deepEqual((await stripe.charges.list({limit: 100}).autoPagingToArray({limit: 1000})).map((c) => c.id), ids);
});

test('online again, everything is settled once', async () => {
  await link('auto');
  const open = async () => (await stripe.charges.list({limit: 100}).autoPagingToArray({limit: 1000})).filter((c) => c.status === 'pending').length;
  await until(async () => (await open()) === 0);
  await until(async () => (await stripe.refunds.retrieve(refund.id)).status === 'succeeded');
  assert.equal((await stripe.paymentIntents.retrieve(pi.id)).status, 'succeeded');
  const charge = await stripe.charges.retrieve(declined.id);
  assert.equal(charge.status, 'failed');
  assert.equal(charge.failure_code, 'card_declined');
});
