// Plays what an operator does at the console in a headless Chromium, against a running wxgate.
//
//   node scenarios.js SCENARIO
//
// ADMIN, PROXY and SANDBOX are base URLs, ADMIN_KEY and CLIENT_KEY the keys, FILE is the
// configuration and PICTURES a folder for screenshots. Ends with 0 if all is as it should be.

'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const path = require('node:path');
const { Browser } = require('./browser.js');
const plants = require('./plants.js');

const { ADMIN, PROXY, SANDBOX, ADMIN_KEY, CLIENT_KEY, FILE, PICTURES } = process.env;
const LISTED = 'wx2222222222222222';
const APPIDS = new Map([
  ['shop', 'wx0123456789abcdef'], ['listed', LISTED], ['frozen', 'wx3333333333333333'],
  ['away', 'wx4444444444444444'], ['old', 'wx5555555555555555'],
]);
const NAMES = ['shop', 'listed', 'frozen', 'away', 'old', 'agent'];

// ---- What happens besides the browser ----

async function ask(url, options = {}) {
  const answer = await fetch(url, options);
  const text = await answer.text();
  return { status: answer.status, value: text ? JSON.parse(text) : null };
}

const call = (target) => ask(`${PROXY}${target}`, { headers: { 'x-wxgate-key': CLIENT_KEY } });
const api = (method, target) => ask(`${ADMIN}${target}`, { method, headers: { 'x-wxgate-key': ADMIN_KEY } });
const sandbox = (method, target, body) => ask(`${SANDBOX}/sandbox${target}`, { method, body: body && JSON.stringify(body) });
const account = async (name) => (await api('GET', '/api/accounts')).value.find((one) => one.name === name);

async function eventually(what, condition) {
  const end = Date.now() + 60000;
  while (!(await condition())) {
    assert(Date.now() < end, `never: ${what}`);
    await new Promise((done) => setTimeout(done, 50));
  }
}

// ---- What the operator sees ----

const row = (name) => `document.querySelector('[data-account="${name}"]')`;
const visible = (id) => `!document.getElementById('${id}').hidden`;
const click = (page, element) => page.value(`${element}.click()`);
const state = (page, name, wanted) => page.until(`${row(name)}?.dataset.state === '${wanted}'`);
const event = (page, kind, text = '') =>
  page.until(`[...document.querySelectorAll('#events [data-kind="${kind}"]')].some((one) => one.innerText.includes(${JSON.stringify(text)}))`);

async function logIn(page) {
  await page.open(`${ADMIN}/`);
  await page.until(`document.readyState === 'complete' && ${visible('login')}`);
  await page.until(`document.activeElement.id === 'key'`);
  await page.type(ADMIN_KEY);
  await page.press('Enter');
  await page.until(visible('main'));
  await page.until(`document.querySelectorAll('#accounts li').length > 0`);
}

/** Presses a button of an account and says yes. Returns what the dialog says in the end. */
async function order(page, name, index) {
  await click(page, `${row(name)}.querySelectorAll('.actions button')[${index}]`);
  await page.until(`document.getElementById('confirm').open`);
  const asked = await page.value(`document.getElementById('confirm').innerText`);
  await click(page, `document.getElementById('confirm-yes')`);
  await page.until(`document.getElementById('confirm-yes').hidden`);
  const said = await page.value(`document.getElementById('confirm-result').textContent`);
  await click(page, `document.getElementById('confirm-no')`);
  return { asked, said };
}

const open = (page, name) => click(page, `${row(name)}.querySelector('button')`);

/** Nothing was blocked, thrown or asked from elsewhere. */
async function assertClean(page, { refusals = 0, failing = /^$/ } = {}) {
  const violations = await page.value('window.violations');
  assert.deepStrictEqual(violations, [], 'reports of the content security policy');
  // A browser notes every answer that is an error, and log-in begins with one.
  const [refused, rest] = [[], []];
  for (const one of page.complaints.filter((one) => !failing.test(one))) (/^network: .* 401 /.test(one) ? refused : rest).push(one);
  assert.deepStrictEqual(rest, []);
  assert(refused.length <= refusals, refused.join('\n'));
  assert.deepStrictEqual(page.dialogs, []);
  for (const url of page.requests) assert(url.startsWith(`${ADMIN}/`) || url === 'about:blank', `asked ${url}`);
}

// ---- Scenarios ----

async function session(browser) {
  const page = await browser.page();
  await page.open(`${ADMIN}/`);
  await page.until(`${visible('login')} && document.activeElement.id === 'key'`);
  assert(!(await page.value('document.body.innerText')).includes('shop'), 'nothing is shown without the key');
  await page.type('wrong');
  await page.press('Enter');
  await page.until(`document.getElementById('login-error').textContent.includes('not the admin key')`);
  assert.strictEqual(await page.value(`document.getElementById('key').value`), '', 'the field does not keep it');
  assert(await page.value(`document.getElementById('main').hidden`));
  await logIn(page);
  assert.strictEqual(await page.value('document.cookie'), '', 'no script can read the cookie');
  assert(!(await page.value('document.documentElement.outerHTML + JSON.stringify(localStorage)')).includes(ADMIN_KEY));
  await page.open(`${ADMIN}/`);
  await page.until(`${visible('main')} && ${row('shop')} !== null`);
  await page.until(`document.getElementById('live').textContent === 'live'`);

  const stranger = await browser.page();
  await stranger.open(`${ADMIN}/`);
  await stranger.until(visible('login'));

  await click(page, `document.getElementById('logout')`);
  await page.until(visible('login'));
  const left = await page.value('document.documentElement.innerText');
  for (const name of NAMES) assert(!left.includes(name), `${name} is still on the page`);
  assert.strictEqual(await page.value(`fetch('/api/accounts').then((answer) => answer.status)`), 401);
  await page.open(`${ADMIN}/`);
  await page.until(visible('login'));
  // Wherever a session ends, the page asks for the key by itself.
  await logIn(page);
  await page.value(`fetch('/api/session', { method: 'DELETE' }).then((answer) => answer.status)`);
  await page.until(`${visible('login')} && document.getElementById('login-error').textContent.includes('over')`);
  await assertClean(page, { refusals: 9 });
}

async function states(browser) {
  const page = await browser.page();
  await logIn(page);
  for (const [name, wanted] of [['shop', 'ok'], ['listed', 'ok'], ['old', 'ok'], ['agent', 'ok'], ['frozen', 'fatal'], ['away', 'failing']]) {
    await state(page, name, wanted);
  }
  const text = (name) => page.value(`${row(name)}.innerText`);
  assert.match(await text('frozen'), /Fails until you act[\s\S]*AppSecret is frozen: unfreeze it/);
  assert.match(await text('shop'), /Works[\s\S]*[0-9a-f]{8} · gen\. 1[\s\S]*(h|min).* left[\s\S]*Next refresh\s*in /i);
  const width = await page.value(`${row('shop')}.querySelector('.life > span').style.width`);
  assert(parseInt(width, 10) > 90, `a fresh token: ${width}`);
  assert.deepStrictEqual(
    await page.value(`[...document.querySelectorAll('#accounts li')].slice(0, 2).map((one) => one.dataset.account)`),
    ['frozen', 'away'], 'trouble stands first');

  // A token that has worked dies: the events tell it as it happens, and the generation moves on.
  await call('/@shop/cgi-bin/user/get');
  await sandbox('POST', '/revoke', { account: 'wx0123456789abcdef' });
  assert.strictEqual((await call('/@shop/cgi-bin/user/get')).status, 200);
  await event(page, 'stale', '40001');
  await event(page, 'fetched', 'generation 2');
  await event(page, 'replayed', 'went through');
  await page.until(`${row('shop')}.innerText.includes('gen. 2')`);

  // The address is refused by the token endpoint, then added to the whitelist.
  const refused = { kind: 'errcode', code: 40164, ip: '198.51.100.7', message: 'invalid ip 198.51.100.7, not in whitelist' };
  const rule = await sandbox('POST', '/faults', { path: '/cgi-bin/stable_token', account: LISTED, times: null, fault: refused });
  await open(page, 'listed');
  const failed = await order(page, 'listed', 0);
  assert.match(failed.said, /40164/);
  await state(page, 'listed', 'degraded');
  assert.match(await text('listed'), /Works, needs attention[\s\S]*IP whitelist[\s\S]*198\.51\.100\.7[\s\S]*not in whitelist/);
  await sandbox('DELETE', `/faults/${rule.value.ids[0]}`);
  const done = await order(page, 'listed', 0);
  assert.match(done.said, /generation/);
  await state(page, 'listed', 'ok');

  // WeCom refuses the address for calls alone; the next accepted call ends it.
  const untrusted = { path: '/cgi-bin/message/**', times: 1, fault: { kind: 'errcode', code: 60020, ip: '198.51.100.7' } };
  await sandbox('POST', '/faults', untrusted);
  await call('/@agent/cgi-bin/message/get_statistics');
  await state(page, 'agent', 'degraded');
  assert.match(await text('agent'), /trusted IPs[\s\S]*198\.51\.100\.7/);
  await event(page, 'degraded', '60020');
  await call('/@agent/cgi-bin/message/get_statistics');
  await state(page, 'agent', 'ok');
  await event(page, 'address_accepted');

  // A forced refresh shows the budget first.
  await open(page, 'shop');
  const forced = await order(page, 'shop', 1);
  assert.match(forced.asked, /Left today[\s\S]*\d forced/i);
  assert.match(forced.said, /New token, generation 3/);
  await page.until(`${row('shop')}.innerText.includes('gen. 3')`);
  await open(page, 'old');
  assert(await page.value(`${row('old')}.querySelectorAll('.actions button')[1].hidden`), 'no forced refresh for a classic token');
  assert.match(await text('old'), /\d+ fetches/);

  await call('/-/accounts/shop/tickets/jsapi');
  await page.until(`${row('shop')}.innerText.includes('jsapi')`);

  assert.strictEqual((await call('/@shop/cgi-bin/menu/delete')).status, 403);
  await event(page, 'denied', '/cgi-bin/menu/delete');
  await page.until(`/crm[\\s\\S]*path_denied 1/.test(document.getElementById('clients').innerText)`);
  await page.until(`document.querySelector('#plot-calls .legend').innerText.match(/all [\\d.]+/)`);
  await page.until(`document.getElementById('plot-latency').querySelectorAll('path[class^="s"]').length === 3`);
  await page.until(`document.getElementById('plot-errors').innerText.includes('40001')`);
  assert.match(await page.value(`document.getElementById('store').innerText`), /memory[\s\S]*127\.0\.0\.1/);

  await click(page, `document.getElementById('language')`);
  await page.until(`/AppSecret 已被冻结/.test(${row('frozen')}.innerText) && document.documentElement.lang === 'zh-CN'`);
  assert.strictEqual(await page.value(`document.getElementById('logout').textContent`), '退出');
  await sandbox('DELETE', '/faults');
  await open(page, 'frozen');
  assert.match((await order(page, 'frozen', 0)).said, /新令牌，代次 1/);
  await state(page, 'frozen', 'ok');
  await api('POST', '/api/accounts/away/refresh');
  await state(page, 'away', 'ok');
  await assertClean(page, { refusals: 1, failing: /502 .*\/accounts\/listed\/refresh$/ });
}

async function inert(browser) {
  const page = await browser.page();
  await logIn(page);
  const [planted, victims] = [[], [...APPIDS.keys()]];
  for (const name of victims) await open(page, name);
  for (let next = 0; next < plants.length; next += victims.length) {
    // WeChat's words about a refused fetch. The rules stay until the page has shown the words.
    await sandbox('DELETE', '/faults');
    await sandbox('POST', '/faults', victims.map((name, index) => (
      { path: '/cgi-bin/*token', account: APPIDS.get(name), times: null, fault: { kind: 'errcode', code: 40013, message: plants[next + index] } })));
    for (const name of victims) await api('POST', `/api/accounts/${name}/refresh`);
    for (const name of victims) {
      const { words } = (await account(name)).last_error;
      assert(/[<"'`{(&]/.test(words), `the plant arrives: ${words}`);
      await page.until(`${row(name)}.textContent.includes(${JSON.stringify(words)})`);
      planted.push(words);
    }
  }
  // A key of the configuration that does not exist.
  const file = fs.readFileSync(FILE, 'utf8');
  for (const plant of plants) {
    fs.writeFileSync(FILE, `${JSON.stringify(plant)} = 1\n${file}`);
    assert.strictEqual((await api('POST', '/api/reload')).status, 422);
  }
  fs.writeFileSync(FILE, file);
  await page.until(`document.querySelectorAll('#events [data-kind="reload_refused"]').length >= ${plants.length}`);
  // The search field, the log-in, and the address of the page.
  const searchFor = (text) =>
    page.value(`(() => { const search = document.getElementById('search'); search.value = ${JSON.stringify(text)}; search.dispatchEvent(new Event('input')); })()`);
  for (const plant of plants.slice(0, 3)) {
    await searchFor(plant);
    await page.until(visible('accounts-empty'));
    await searchFor('');
    await page.until(`${row('listed')} !== null`);
  }
  await ask(`${ADMIN}/api/session`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ key: plants[0] }) });
  await event(page, 'login_failed');

  const strange = `[...document.querySelectorAll('img, iframe, object, embed, video, audio, base, math, style, marquee, details, template, [onload], [onerror], [onclick], [onfocus], [ontoggle], [style*="url"]')].map((one) => one.outerHTML)`;
  assert.deepStrictEqual(await page.value(strange), []);
  assert.strictEqual(await page.value(`document.querySelectorAll('script').length`), 1);
  assert.strictEqual(await page.value('typeof window.planted'), 'undefined');
  assert.strictEqual(new Set(planted).size, 40);
  await page.open(`${ADMIN}/?query=${encodeURIComponent(plants[0])}#${encodeURIComponent(plants[1])}`);
  await page.until(`${visible('main')} && ${row('listed')} !== null`);
  assert.strictEqual(await page.value('typeof window.planted'), 'undefined');
  await assertClean(page, { refusals: 1 });
  await policyWorks(browser);
}

/** The policy stops markup and scripts even if a bug let them in; this also shows that reports would be seen. */
async function policyWorks(browser) {
  const page = await browser.page();
  await page.open(`${ADMIN}/`);
  await page.until(visible('login'));
  const inserted = await page.value(`(() => { try { document.body.innerHTML = '<b>x</b>'; return 'inserted'; } catch (error) { return error.name; } })()`);
  assert.strictEqual(inserted, 'TypeError');
  await page.value(`(() => { const script = document.createElement('img'); script.src = 'https://elsewhere.invalid/x.png'; document.body.append(script); })()`);
  await page.until('window.violations.length >= 2');
}

/** Presses Tab until the focus is where a person would want it. */
async function tabTo(page, condition) {
  for (let step = 0; step < 80; step += 1) {
    if (await page.value(`(() => { const focus = document.activeElement; return Boolean(${condition}); })()`)) {
      const outline = await page.value(`getComputedStyle(document.activeElement).outlineStyle`);
      assert.notStrictEqual(outline, 'none', `the focus can be seen: ${condition}`);
      return;
    }
    await page.press('Tab');
  }
  throw new Error(`Tab never reaches ${condition}`);
}

async function keyboard(browser) {
  const page = await browser.page();
  await logIn(page);
  await state(page, 'frozen', 'fatal');
  await page.press('Tab');
  await tabTo(page, `focus.id === 'search'`);
  await page.type('listed');
  await page.until(`document.querySelectorAll('#accounts li').length === 1`);
  await tabTo(page, `focus.closest('[data-account="listed"]') && focus.hasAttribute('aria-expanded')`);
  await page.press('Enter');
  await page.until(`!${row('listed')}.querySelector('.detail').hidden`);
  await tabTo(page, `focus.textContent.startsWith('Force a refresh')`);
  await page.press('Enter');
  await page.until(`document.getElementById('confirm').open && document.activeElement.id === 'confirm-no'`);
  await page.press('Escape');
  await page.until(`!document.getElementById('confirm').open && document.activeElement.textContent.startsWith('Force a refresh')`);
  assert.strictEqual((await account('listed')).generation, 1, 'Escape orders nothing');
  // The page renews itself every few seconds, and the focus has to stay.
  await page.press(' ');
  await page.until(`document.getElementById('confirm').open`);
  await tabTo(page, `focus.id === 'confirm-yes'`);
  await page.press('Enter');
  await page.until(`document.getElementById('confirm-result').textContent.includes('generation 2')`);
  await page.until(`document.activeElement.id === 'confirm-no'`);
  await page.press('Enter');
  await page.until(`!document.getElementById('confirm').open && ${row('listed')}.innerText.includes('gen. 2')`);
  await tabTo(page, `focus.id === 'language'`);
  await page.press('Enter');
  await page.until(`document.documentElement.lang === 'zh-CN'`);
  await tabTo(page, `focus.id === 'logout'`);
  await page.press('Enter');
  await page.until(`${visible('login')} && document.activeElement.id === 'key'`);
  await assertClean(page, { refusals: 1 });
}

async function paging(browser) {
  const page = await browser.page({ width: 390, height: 844 });
  await logIn(page);
  const shown = `[...document.querySelectorAll('#accounts li')].map((one) => one.dataset.account)`;
  const first = await page.value(shown);
  assert.strictEqual(first.length, 25);
  await page.until(`document.getElementById('page').textContent === '1–25 of 66'`);
  await click(page, `document.getElementById('next')`);
  await page.until(`document.getElementById('page').textContent === '26–50 of 66'`);
  await click(page, `document.getElementById('next')`);
  await page.until(`document.getElementById('page').textContent === '51–66 of 66' && document.getElementById('next').disabled`);
  assert.strictEqual((await page.value(shown)).length, 16);
  await page.value(`(() => { const search = document.getElementById('search'); search.value = 'BRANCH-5'; search.dispatchEvent(new Event('input')); })()`);
  await page.until(`document.querySelectorAll('#accounts li').length === 11 && document.getElementById('pager').hidden`);
  await page.value(`(() => { const search = document.getElementById('search'); search.value = ''; search.dispatchEvent(new Event('input'));
    const state = document.getElementById('state'); state.value = 'fatal'; state.dispatchEvent(new Event('change')); })()`);
  await page.until(`document.querySelectorAll('#accounts li').length === 1 && ${row('frozen')} !== null`);
  await page.value(`(() => { const search = document.getElementById('search'); search.value = 'nobody'; search.dispatchEvent(new Event('input')); })()`);
  await page.until(visible('accounts-empty'));
  await assertClean(page, { refusals: 1 });
}

/** Contrast of an element's text with what is behind it, as WCAG has it. */
const CONTRAST = `(element) => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  let behind = element;
  while (behind.parentElement && (numbers(getComputedStyle(behind).backgroundColor)[3] === 0)) behind = behind.parentElement;
  const light = (color) => {
    const [r, g, b] = numbers(color).map((part) => part / 255).map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}`;

async function pictures(browser) {
  await call('/@shop/cgi-bin/user/get');
  await sandbox('POST', '/revoke', { account: 'wx0123456789abcdef' });
  const traffic = ['/@shop/cgi-bin/user/get', '/@listed/cgi-bin/user/get', '/@agent/cgi-bin/user/get', '/@shop/cgi-bin/menu/delete'];
  for (const target of traffic) await call(target);
  await call('/-/accounts/shop/tickets/jsapi');
  for (const language of ['en-US', 'zh-CN']) {
    for (const dark of [false, true]) {
      for (const width of [1280, 390]) {
        const name = `${language.slice(0, 2)}-${dark ? 'dark' : 'light'}-${width}`;
        const page = await browser.page({ width, height: width === 390 ? 844 : 900, dark, language });
        await page.open(`${ADMIN}/`);
        await page.until(visible('login'));
        await look(page, `login-${name}`, '#login h2, #login .muted, #login label, #login button');
        await logIn(page);
        await state(page, 'frozen', 'fatal');
        await open(page, 'frozen');
        await page.until(`document.querySelectorAll('#events li').length > 3 && document.querySelectorAll('#clients tr').length > 0`);
        await look(page, `console-${name}`, 'header span, .tile dt, .tile dd, small, figcaption, .name, .state, .sub, .advice span, .words, h2, h3, th, td, time, #events span, .facts dt, .facts dd, .actions button');
        await assertClean(page, { refusals: 2 });
      }
    }
  }
}

/** Makes the pictures of the READMEs: two minutes with calls, refusals and a denied client. */
async function readme(browser) {
  const end = Date.now() + 125000;
  await sandbox('POST', '/faults', { path: '/cgi-bin/message/template/send', times: null, fault: { kind: 'errcode', code: 45009 } });
  const untrusted = { path: '/cgi-bin/stable_token', account: LISTED, times: null, fault: { kind: 'errcode', code: 40164, ip: '198.51.100.7' } };
  await sandbox('POST', '/faults', untrusted);
  await call('/-/accounts/shop/tickets/jsapi');
  await call('/-/accounts/shop/tickets/wx_card');
  for (let step = 0; Date.now() < end; step += 1) {
    const load = 3 + Math.round(2 * Math.sin(step / 9));
    for (let count = 0; count < load; count += 1) await call(['/@shop/cgi-bin/user/get', '/@old/cgi-bin/menu/get', '/@agent/cgi-bin/user/get?userid=zhang'][count % 3]);
    if (step % 7 === 0) await call('/@shop/cgi-bin/message/template/send');
    if (step % 40 === 20) await call('/@shop/cgi-bin/menu/delete');
    if (step === 60) {
      await sandbox('POST', '/revoke', { account: 'wx0123456789abcdef' });
      await api('POST', '/api/accounts/listed/refresh');
    }
    await new Promise((done) => setTimeout(done, 200));
  }
  for (const [language, dark] of [['en-US', false], ['zh-CN', true]]) {
    const page = await browser.page({ width: 1280, height: 1000, dark, language });
    await logIn(page);
    await open(page, 'shop');
    await page.until(`document.querySelectorAll('#events li').length > 3 && ${row('shop')}.querySelector('.detail svg') !== null`);
    await page.screenshot(path.join(PICTURES, `readme-${language.slice(0, 2)}.png`));
  }
}

async function look(page, name, selector) {
  await page.value(`document.fonts.ready.then(() => true)`);
  const wide = await page.value('document.documentElement.scrollWidth - document.documentElement.clientWidth');
  assert.strictEqual(wide, 0, `${name}: nothing has to be scrolled sideways`);
  const faint = await page.value(`[...document.querySelectorAll('${selector}')]
    .filter((one) => one.checkVisibility() && one.textContent.trim() && !one.disabled)
    .map((one) => [(${CONTRAST})(one), one.className, one.textContent.slice(0, 30)]).filter(([contrast]) => contrast < 4.5)`);
  assert.deepStrictEqual(faint, [], `${name}: text of too little contrast`);
  await page.screenshot(path.join(PICTURES, `${name}.png`));
}

async function main() {
  const scenarios = { session, states, inert, keyboard, paging, pictures, readme };
  const browser = await Browser.start();
  try {
    await eventually('the accounts have asked for their tokens', async () => {
      const { value } = await api('GET', '/api/accounts');
      return value.every((one) => one.state !== 'waiting');
    });
    await scenarios[process.argv[2]](browser);
  } finally {
    await browser.stop();
  }
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
