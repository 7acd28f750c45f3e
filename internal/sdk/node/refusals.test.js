import assert from 'node:assert/strict';
import {test} from 'node:test';
import {client, refused, sale} from './box.js';

const stripe = client();
const invalid = 'StripeInvalidRequestError';

test('who is calling', async () => {
  await refused(client('sk_test_wrong').charges.create(sale(100)), 'StripeAuthenticationError', {statusCode: 401, code: 'auth_invalid'});
  await refused(stripe.charges.create(sale(100), {stripeAccount: 'acct_1'}), invalid, {statusCode: 400, code: 'account_invalid'});
});

test('what there is not', async () => {
  await refused(stripe.charges.retrieve('ch_123'), invalid, {statusCode: 404, code: 'resource_missing', param: 'id'});
  await refused(stripe.paymentIntents.retrieve('pi_123'), invalid, {statusCode: 404, code: 'resource_missing', param: 'intent'});
  await refused(stripe.customers.create({email: 'guest@example.com'}), invalid, {statusCode: 404, code: 'url_unknown'});
});

for (const [name, params, code, param] of [
  ['an unknown parameter', {...sale(100), tip: 5}, 'parameter_unknown', 'tip'],
  ['money for later', {...sale(100), capture: false}, 'parameter_unsupported', 'capture'],
  ['a customer', {...sale(100), customer: 'cus_1'}, 'parameter_unsupported', 'customer'],
  ['money for somebody else', {...sale(100), transfer_data: {destination: 'acct_1'}}, 'parameter_unsupported', 'transfer_data'],
  ['no amount', {currency: 'usd', source: 'tok_visa'}, 'parameter_missing', 'amount'],
  ['no source', {amount: 100, currency: 'usd'}, 'parameter_missing', 'source'],
  ['half a cent', sale(0.5), 'parameter_invalid_integer', 'amount'],
  ['a card', {amount: 100, currency: 'usd', source: {object: 'card', number: '4242424242424242', exp_month: 12, exp_year: 2030}}, 'card_data_not_allowed', 'source[number]'],
]) {
  test(`${name} is refused`, () => refused(stripe.charges.create(params), invalid, {statusCode: 400, code, param}));
}

test('a filter that there is not', async () => {
  await refused(stripe.charges.list({customer: 'cus_1'}), invalid, {statusCode: 400, code: 'parameter_unknown', param: 'customer'});
  assert.deepEqual((await stripe.charges.list()).data, []);
});
