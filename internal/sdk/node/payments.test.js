import assert from 'node:assert/strict';
import {test} from 'node:test';
import Stripe from 'stripe';
import {ask, client, refused, sale} from './box.js';

const stripe = client();

test('a charge is made, read and listed', async () => {
  const made = await stripe.charges.create({...sale(1999), description: 'Two teas', metadata: {till: '3'}, receipt_email: 'guest@example.com', expand: ['customer']});
  assert.equal(made.object, 'charge');
  assert.equal(made.status, 'succeeded');
  assert.equal(made.paid, true);
  assert.deepEqual(made.metadata, {till: '3'});
  assert.match(made.lastResponse.requestId, /^req_/);
  assert.equal(made.lastResponse.apiVersion, Stripe.API_VERSION);
  assert.deepEqual(await stripe.charges.retrieve(made.id, {expand: ['refunds']}), made);
  const list = await stripe.charges.list({limit: 3});
  assert.equal(list.has_more, false);
  assert.deepEqual(list.data.map((c) => c.id), [made.id]);
});

test('a decline is a StripeCardError', async () => {
  const e = await refused(stripe.charges.create(sale(500, 'tok_chargeDeclinedInsufficientFunds')), 'StripeCardError',
    {statusCode: 402, code: 'card_declined', decline_code: 'insufficient_funds'});
  const charge = await stripe.charges.retrieve(e.charge);
  assert.equal(charge.status, 'failed');
  assert.equal(charge.failure_message, e.message);
  await refused(stripe.refunds.create({charge: charge.id}), 'StripeInvalidRequestError', {statusCode: 400, code: 'charge_not_refundable', param: 'charge'});
  const pi = await refused(stripe.paymentIntents.create({amount: 500, currency: 'eur', payment_method: 'pm_card_chargeDeclined', confirm: true}), 'StripeCardError',
    {statusCode: 402, code: 'card_declined', decline_code: 'generic_decline'});
  assert.equal(pi.payment_intent.status, 'requires_payment_method');
});

test('an intent at once, in two steps, and given up', async () => {
  const once = await stripe.paymentIntents.create({
    amount: 1250, currency: 'eur', payment_method: 'pm_card_visa', confirm: true, automatic_payment_methods: {enabled: true, allow_redirects: 'never'},
  });
  assert.equal(once.status, 'succeeded');
  assert.equal(once.amount_received, 1250);
  assert.equal((await stripe.charges.retrieve(once.latest_charge)).payment_intent, once.id);
  await refused(stripe.paymentIntents.cancel(once.id), 'StripeInvalidRequestError', {statusCode: 400, code: 'payment_intent_unexpected_state'});

  const two = await stripe.paymentIntents.create({amount: 300, currency: 'eur'});
  assert.equal(two.status, 'requires_payment_method');
  const done = await stripe.paymentIntents.confirm(two.id, {payment_method: 'pm_card_visa', return_url: 'https://shop.example/done'});
  assert.equal(done.status, 'succeeded');
  const e = await refused(stripe.paymentIntents.confirm(two.id), 'StripeInvalidRequestError', {statusCode: 400, code: 'payment_intent_unexpected_state'});
  assert.equal(e.payment_intent.status, 'succeeded');

  const third = await stripe.paymentIntents.create({amount: 300, currency: 'eur', payment_method: 'pm_card_visa'});
  assert.equal(third.status, 'requires_confirmation');
  assert.equal((await stripe.paymentIntents.cancel(third.id, {cancellation_reason: 'abandoned'})).status, 'canceled');
  await refused(stripe.paymentIntents.confirm(third.id), 'StripeInvalidRequestError', {code: 'payment_intent_unexpected_state'});
  assert.deepEqual((await stripe.paymentIntents.list({limit: 2})).data.map((i) => i.id), [third.id, two.id]);
});

test('refunds, part and rest', async () => {
  const charge = await stripe.charges.create(sale(1000));
  const part = await stripe.refunds.create({charge: charge.id, amount: 300, reason: 'requested_by_customer', metadata: {clerk: '9'}});
  assert.equal(part.status, 'succeeded');
  assert.equal(part.charge, charge.id);
  await refused(stripe.refunds.create({charge: charge.id, amount: 701}), 'StripeInvalidRequestError', {statusCode: 400, code: 'amount_too_large', param: 'amount'});
  const rest = await stripe.refunds.create({charge: charge.id});
  assert.equal(rest.amount, 700);
  await refused(stripe.refunds.create({charge: charge.id}), 'StripeInvalidRequestError', {statusCode: 400, code: 'charge_already_refunded'});
  assert.equal((await stripe.charges.retrieve(charge.id)).refunded, true);
  assert.deepEqual(await stripe.refunds.retrieve(part.id), part);
  assert.deepEqual((await stripe.refunds.list({charge: charge.id})).data.map((r) => r.id), [rest.id, part.id]);
});

test('events, with the objects as they were', async () => {
  const charge = await stripe.charges.create(sale(4200));
  await stripe.refunds.create({charge: charge.id});
  const events = await stripe.events.list({types: ['charge.*', 'refund.*'], limit: 4});
  const types = events.data.map((e) => e.type);
  assert.deepEqual(types.sort(), ['charge.pending', 'charge.succeeded', 'refund.created', 'refund.updated']);
  const succeeded = events.data.find((e) => e.type === 'charge.succeeded');
  assert.equal(succeeded.data.object.id, charge.id);
  assert.equal(succeeded.data.object.refunded, false);
  assert.deepEqual(await stripe.events.retrieve(succeeded.id), succeeded);
});

test('a client of no SDK', async () => {
  const headers = {'Stripe-Version': '2022-11-15'};
  const made = await ask('POST', '/v1/charges', {body: {amount: 1999, currency: 'usd', source: 'tok_visa'}, headers});
  assert.equal(made.status, 200);
  const read = await ask('GET', `/v1/charges/${made.json.id}`, {headers});
  assert.equal(read.json.status, 'succeeded');
  assert.deepEqual(read.json, made.json);
});
