// The console of wxgate. What comes from the API is put in as text, never as markup; the policy of
// the page forbids the rest.

import { languages, preferred, remember, span } from './words.js';
import { draw, short } from './plot.js';

const EVERY = 5000;
const PAGE = 25;
const MAX_EVENTS = 200;

const $ = (id) => document.getElementById(id);
let language = preferred();
let w = languages[language];
let offset = 0;
let timer = null;
/** Number of the latest question: the answer to an older one comes too late to be shown. */
let asked = 0;
let source = null;
let latest = { overview: null, page: null, series: null, clients: null };
const events = new Map();
const rows = new Map();

/** Makes an element. */
function h(name, { className, text, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const facts = (pairs) =>
  pairs.flatMap(([name, ...values]) => [h('div', {}, h('dt', { text: name }), h('dd', {}, ...values))]);

// ---- API ----

class ApiFailure extends Error {
  constructor(status, body, retryAfter) {
    super(body.message || String(status));
    this.status = status;
    this.slug = body.error;
    this.retryAfter = retryAfter;
  }
}

async function call(method, path, body) {
  const options = { method, headers: {}, cache: 'no-store' };
  if (body !== undefined) {
    options.headers['content-type'] = 'application/json';
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  const text = await answer.text();
  let value = {};
  try {
    value = text ? JSON.parse(text) : {};
  } catch {
    value = { message: text.slice(0, 200) };
  }
  if (!answer.ok) throw new ApiFailure(answer.status, value, Number(answer.headers.get('retry-after')));
  return value;
}

// ---- Log-in ----

function showLogin(message) {
  stop();
  $('main').hidden = true;
  $('login').hidden = false;
  $('logout').hidden = true;
  $('node').textContent = '';
  $('version').textContent = '';
  $('live').textContent = '';
  $('login-error').textContent = message || '';
  forget();
  $('key').focus();
}

/** Takes everything off the page that only somebody with the key may see. */
function forget() {
  events.clear();
  rows.clear();
  latest = { overview: null, page: null, series: null, clients: null };
  for (const id of ['accounts', 'events', 'clients', 'tiles', 'store', 'plot-calls', 'plot-latency', 'plot-errors']) {
    $(id).replaceChildren();
  }
  if ($('confirm').open) $('confirm').close('no');
}

async function logIn(event) {
  event.preventDefault();
  const field = $('key');
  const key = field.value;
  field.value = '';
  try {
    await call('POST', '/api/session', { key });
    $('login-error').textContent = '';
    await start();
  } catch (failure) {
    $('login-error').textContent = loginProblem(failure);
    field.focus();
  }
}

function loginProblem(failure) {
  if (failure.slug === 'key_wrong') return w.wrongKey;
  if (failure.slug === 'too_many_attempts') return w.tooMany(span(w, failure.retryAfter || 60));
  return failure instanceof ApiFailure ? failure.message : w.unreachable;
}

async function logOut() {
  try {
    await call('DELETE', '/api/session');
  } catch {
    // The session is forgotten here all the same, and ends by itself there.
  }
  showLogin();
}

// ---- Polling ----

async function start() {
  stop();
  if (!(await refresh())) {
    if ($('login').hidden) schedule();
    return;
  }
  $('login').hidden = true;
  $('main').hidden = false;
  follow();
  schedule();
}

function stop() {
  clearTimeout(timer);
  asked += 1;
  if (source) source.close();
  source = null;
}

function schedule(delay = EVERY) {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    if (document.visibilityState === 'hidden') return schedule();
    const isFresh = await refresh();
    // The newer question has its own schedule.
    if (isFresh === null) return;
    if (isFresh && (!source || source.readyState === EventSource.CLOSED)) follow();
    if ($('login').hidden) schedule();
  }, delay);
}

/** Asks for everything that is shown: false if it could not be had, null if it came too late. */
async function refresh() {
  const mine = ++asked;
  const query = new URLSearchParams({ query: $('search').value, state: $('state').value, order: 'trouble', offset, limit: PAGE });
  try {
    // Alone first, so that a page without a session is refused once and not four times.
    const overview = await call('GET', '/api/overview');
    const [page, series, clients] = await Promise.all([
      call('GET', `/api/accounts?${query}`),
      call('GET', '/api/series'),
      call('GET', '/api/clients'),
    ]);
    if (mine !== asked) return null;
    latest = { overview, page, series, clients, at: Date.now() };
    render();
    return true;
  } catch (failure) {
    if (mine !== asked) return null;
    if (failure instanceof ApiFailure && failure.status === 401) {
      showLogin($('main').hidden ? '' : w.sessionOver);
    } else {
      $('main').hidden = !$('login').hidden;
      notice(w.unreachable);
    }
    return false;
  }
}

// ---- Events ----

function follow() {
  if (source) source.close();
  source = new EventSource('/api/events');
  source.onopen = () => { $('live').textContent = w.live; };
  source.onerror = () => { $('live').textContent = w.notLive; };
  source.onmessage = (message) => {
    const event = JSON.parse(message.data);
    events.delete(event.id);
    events.set(event.id, event);
    while (events.size > MAX_EVENTS) events.delete(events.keys().next().value);
    renderEventsSoon();
    // The accounts have changed, so they are asked for at once.
    if (Date.now() - (latest.at || 0) > 1000) schedule(200);
  };
}

let isEventsDue = false;
function renderEventsSoon() {
  if (isEventsDue) return;
  isEventsDue = true;
  requestAnimationFrame(() => {
    isEventsDue = false;
    renderEvents();
  });
}

/** Cause of a failure, in the words of the page if it has some. */
function causeOf({ errcode, label, sentence }) {
  const known = w.advice[errcode] || w.advice[label];
  return known ? `${errcode ?? label}: ${known}` : sentence;
}

function renderEvents() {
  const items = [...events.values()].reverse().map((event) => {
    const at = new Date(event.at);
    const sentence = w.sentences[event.kind];
    let text = event.kind;
    try {
      text = sentence ? sentence(event.fields, causeOf(event.fields)) : event.kind;
    } catch {
      // An event of a newer wxgate may lack what the sentence wants.
    }
    const who = [event.client, event.account].filter((name) => name && name !== '-').join(' → ');
    const tone = { warning: 'warn', error: 'bad' }[event.level] || '';
    return h('li', { 'data-kind': event.kind },
      h('time', { text: at.toLocaleTimeString(language === 'zh' ? 'zh-CN' : 'en-GB'), datetime: at.toISOString() }),
      h('p', {}, h('b', { text: who }), who ? ' ' : '', h('span', { className: tone, text }),
        h('span', { className: 'muted', text: event.count > 1 ? w.times(event.count) : '' })));
  });
  $('events').replaceChildren(...items);
  $('events-empty').hidden = items.length > 0;
}

// ---- Page ----

function translate() {
  document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en';
  for (const node of document.querySelectorAll('[data-t]')) node.textContent = w[node.dataset.t];
  for (const node of document.querySelectorAll('[data-label]')) node.setAttribute('aria-label', w[node.dataset.label]);
  for (const node of document.querySelectorAll('[data-placeholder]')) node.placeholder = w[node.dataset.placeholder];
  const state = $('state').value;
  $('state').replaceChildren(h('option', { value: '', text: w.allStates }),
    ...Object.entries(w.states).map(([value, text]) => h('option', { value, text })));
  $('state').value = state;
  $('language').textContent = language === 'zh' ? 'English' : '中文';
  $('language').lang = language === 'zh' ? 'en' : 'zh';
}

function switchLanguage() {
  language = language === 'zh' ? 'en' : 'zh';
  w = languages[language];
  remember(language);
  translate();
  rows.clear();
  if (latest.overview) {
    render();
    renderEvents();
  }
}

function notice(text) {
  $('notice').hidden = !text;
  $('notice').textContent = text || '';
}

function render() {
  const { overview } = latest;
  renderHead(overview);
  renderTiles(overview, latest.series.samples);
  renderPlots(latest.series.samples);
  renderAccounts(latest.page);
  renderClients(latest.clients);
  renderStore(overview);
}

function renderHead(overview) {
  $('version').textContent = overview.version;
  $('logout').hidden = !overview.key_required;
  $('node').textContent = overview.ready ? w.ready : w.notReady;
  $('node').className = `pill ${overview.ready ? 'ok' : 'bad'}`;
  const troubles = [];
  if (overview.error) troubles.push(w.nodeErrors[overview.error] || overview.message);
  if (overview.stuck) troubles.push(w.stuckTrouble(overview.stuck));
  if (overview.log) troubles.push(w.logTrouble(overview.log.lines_dropped));
  notice(troubles.join(' '));
}

function renderTiles(overview, samples) {
  const { accounts } = overview;
  const trouble = accounts.total - accounts.ok;
  const last = samples.at(-1);
  const recent = samples.slice(-60);
  const timed = recent.findLast((sample) => sample.p95 !== null);
  const sum = (name) => recent.reduce((total, sample) => total + sample[name], 0);
  const [calls, failed] = [sum('calls'), sum('failed')];
  const tile = (name, value, note, tone) =>
    h('dl', { className: 'tile' }, h('dt', { text: name }),
      h('dd', { className: tone || '', text: value }, h('small', { text: note })));
  $('tiles').replaceChildren(
    tile(w.node, overview.ready ? w.ready : w.notReady, w.up(span(w, (Date.now() - overview.started) / 1000)), overview.ready ? 'ok' : 'bad'),
    tile(w.accounts, `${accounts.ok} / ${accounts.total}`, trouble ? w.trouble(trouble) : w.allWell, trouble ? 'warn' : ''),
    tile(w.callsNow, last ? short(last.calls / last.seconds) : '–', `${calls} · ${w.lastMinutes}`),
    tile(w.p95, timed ? `${short(timed.p95)} ms` : '–', timed ? `p50 ${short(timed.p50)} ms` : ''),
    tile(w.errorsNow, String(failed), w.lastMinutes, failed ? 'warn' : ''),
    tile(w.inFlight, String(overview.in_flight), ''),
  );
}

const rate = (samples, name) => samples.map((s) => [s.at, s[name] / s.seconds]);

function errorSeries(samples) {
  const totals = new Map();
  for (const sample of samples) {
    for (const [code, count] of Object.entries(sample.errcodes)) totals.set(code, (totals.get(code) || 0) + count);
  }
  const top = [...totals].sort((a, b) => b[1] - a[1]).slice(0, 5);
  return top.map(([code]) => ({ name: code, points: samples.map((s) => [s.at, ((s.errcodes[code] || 0) / s.seconds) * 60]) }));
}

function callSeries(samples) {
  return [{ name: w.total, points: rate(samples, 'calls') }, { name: w.failed, points: rate(samples, 'failed') }];
}

function renderPlots(samples) {
  draw($('plot-calls'), callSeries(samples), { empty: w.noData, label: w.callsPerSecond });
  const latency = ['p50', 'p95', 'p99'].map((name) => ({ name, points: samples.map((s) => [s.at, s[name]]) }));
  draw($('plot-latency'), latency, { empty: w.noData, label: w.latency });
  draw($('plot-errors'), errorSeries(samples), { empty: w.none, label: w.errorCodes });
}

// ---- Accounts ----

const TONES = { ok: 'ok', waiting: 'muted', degraded: 'warn', failing: 'bad', fatal: 'bad' };

function renderAccounts(page) {
  $('accounts-count').textContent = w.found(page.matching, page.total);
  $('accounts-empty').hidden = page.matching > 0;
  $('accounts-empty').textContent = w.nothingFound;
  const shown = page.accounts.map((account) => {
    let row = rows.get(account.name);
    if (!row) rows.set(account.name, (row = makeRow(account.name)));
    row.update(account);
    return row.node;
  });
  const list = $('accounts');
  for (const child of [...list.children]) if (!shown.includes(child)) child.remove();
  // Moved only where the order has changed, so that the focus stays where it is.
  shown.forEach((node, index) => {
    if (list.children[index] !== node) list.insertBefore(node, list.children[index] || null);
  });
  for (const name of rows.keys()) if (!page.accounts.some((account) => account.name === name)) rows.delete(name);
  $('pager').hidden = page.matching <= PAGE && offset === 0;
  $('previous').disabled = offset === 0;
  $('next').disabled = offset + PAGE >= page.matching;
  const first = page.accounts.length ? page.offset + 1 : 0;
  $('page').textContent = w.page(first, page.offset + page.accounts.length, page.matching);
}

function adviceFor(account) {
  const error = account.last_error;
  const parts = [];
  if (error) {
    const known = w.advice[error.errcode] || w.advice[error.label];
    // Without words of its own the console shows those of wxgate, which are English.
    parts.push(known || error.sentence || w.otherAdvice);
  } else if (account.state === 'waiting') {
    parts.push(w.waitAdvice);
  } else if (account.state !== 'ok') {
    parts.push(w.deadAdvice);
  }
  if (error && error.ip) parts.push(`${w.refusedIp}: ${error.ip}`);
  // English too, and rare: calls without a selector go here until the next restart only.
  if (account.warning) parts.push(account.warning);
  if (account.conflicts > 0) parts.push(w.conflictAdvice(account.conflicts));
  return parts.join(' ');
}

function budgetTexts({ classic, forced }) {
  const texts = [];
  if (classic !== null) texts.push(w.classicLeft(classic));
  if (forced !== null) texts.push(w.forcedLeft(forced));
  return texts.length ? texts : [w.noLimit];
}

function nextText(account) {
  if (account.next_attempt_in === null) return w.never;
  return account.next_attempt_in === 0 ? w.now : w.nextIn(span(w, account.next_attempt_in));
}

function makeRow(name) {
  const id = `account-${name}`;
  const parts = {
    state: h('span', { className: 'state' }),
    token: h('span', { className: 'sub mono' }),
    bar: h('span'),
    left: h('span', { className: 'sub' }),
    next: h('span', { className: 'next-cell' }),
    advice: h('div', { className: 'advice' }),
    detail: h('div', { className: 'detail', id, hidden: '' }),
  };
  const life = h('span', { className: 'life', role: 'meter', 'aria-valuemin': 0, 'aria-valuemax': 100, 'aria-label': w.life }, parts.bar);
  const head = h('button', { type: 'button', 'aria-expanded': 'false', 'aria-controls': id },
    h('span', { className: 'name', text: name }), parts.state,
    h('span', { className: 'life-cell' }, life, parts.left), parts.next,
    h('span', { className: 'chevron', text: '›', 'aria-hidden': 'true' }));
  const node = h('li', { className: 'row', 'data-account': name }, head, parts.advice, parts.detail);
  const row = { node, account: null };
  head.addEventListener('click', () => {
    const isOpen = head.getAttribute('aria-expanded') === 'true';
    head.setAttribute('aria-expanded', String(!isOpen));
    parts.detail.hidden = isOpen;
    renderDetail(row, parts);
  });
  row.update = (account) => {
    row.account = account;
    node.dataset.state = account.state;
    parts.state.className = `state ${TONES[account.state] || 'muted'}`;
    parts.state.replaceChildren(h('span', {}, w.states[account.state] || account.state,
      h('span', { className: 'sub mono', text: account.fingerprint ? `${account.fingerprint} · ${w.nth(account.generation)}` : w.noToken })));
    const total = (account.expires_in || 0) + (account.age || 0);
    const share = total ? (account.expires_in || 0) / total : 0;
    parts.bar.style.setProperty('width', `${Math.round(share * 100)}%`);
    life.setAttribute('aria-valuenow', Math.round(share * 100));
    life.className = `life ${account.expires_in === null ? 'muted' : share < 0.05 ? 'bad' : 'ok'}`;
    parts.left.textContent = account.expires_in === null ? w.noToken : w.remaining(span(w, account.expires_in));
    parts.next.replaceChildren(h('span', { className: 'sub', text: w.nextRefresh }), nextText(account));
    const advice = adviceFor(account);
    parts.advice.hidden = !advice;
    parts.advice.replaceChildren(h('p', { className: TONES[account.state] === 'ok' ? 'warn' : TONES[account.state] || '' }, h('span', { text: advice })));
    renderDetail(row, parts);
  };
  return row;
}

function renderDetail(row, { detail }) {
  if (detail.hidden || !row.account) return;
  const { account } = row;
  if (!row.kept) {
    row.kept = { facts: h('dl', { className: 'facts' }), error: h('div'), calls: h('div', { className: 'plot' }), errors: h('div', { className: 'plot' }) };
    const button = (text, force) => {
      const made = h('button', { type: 'button', text });
      made.addEventListener('click', () => confirmRefresh(row.account, force));
      return made;
    };
    row.kept.force = button(w.force, true);
    detail.append(row.kept.facts, row.kept.error,
      h('div', { className: 'plots' }, h('figure', {}, h('figcaption', { text: w.callsPerSecond }), row.kept.calls),
        h('figure', {}, h('figcaption', { text: w.errorCodes }), row.kept.errors)),
      h('div', { className: 'actions' }, button(w.refresh, false), row.kept.force));
  }
  row.kept.force.hidden = account.budgets.forced === null;
  row.kept.facts.replaceChildren(...facts([
    [w.token, h('span', { className: 'mono', text: account.fingerprint || w.noToken })],
    [w.generation, String(account.generation)],
    [w.age, account.age === null ? w.never : w.ago(span(w, account.age))],
    [w.nextRefresh, nextText(account)],
    [w.budgets, ...budgetTexts(account.budgets).map((text) => h('div', { text }))],
    [w.conflicts, String(account.conflicts)],
    [w.tickets, ...(account.tickets.length ? account.tickets.map(ticketLine) : [w.noTickets])],
  ]));
  row.kept.error.replaceChildren(...errorParts(account.last_error));
  drawAccount(row);
}

function ticketLine(ticket) {
  const left = ticket.expires_in === null ? w.noToken : w.remaining(span(w, ticket.expires_in));
  const error = ticket.last_error ? ` – ${ticket.last_error.sentence}` : '';
  return h('div', {}, h('b', { text: ticket.type }), ` ${w.states[ticket.state] || ticket.state}, ${left}${error}`);
}

function errorParts(error) {
  if (!error) return [];
  const about = [error.errcode !== null ? `errcode ${error.errcode}` : error.label];
  if (error.failures > 1) about.push(w.inRow(error.failures));
  if (error.ip) about.push(`${w.refusedIp} ${error.ip}`);
  const parts = [h('h3', { text: `${w.lastError}: ${about.join(' · ')}` }), h('p', { className: 'words', text: error.sentence })];
  if (error.words) parts.push(h('h3', { text: w.words }), h('p', { className: 'words mono', text: error.words }));
  return parts;
}

async function drawAccount(row) {
  try {
    const { samples } = await call('GET', `/api/series?account=${encodeURIComponent(row.account.name)}`);
    draw(row.kept.calls, callSeries(samples), { empty: w.noData, label: w.callsPerSecond });
    draw(row.kept.errors, errorSeries(samples), { empty: w.none, label: w.errorCodes });
  } catch {
    // The next look at the node says what is wrong.
  }
}

// ---- Refresh by hand ----

function confirmRefresh(account, force) {
  const dialog = $('confirm');
  const yes = $('confirm-yes');
  $('confirm-title').textContent = (force ? w.forceTitle : w.refreshTitle)(account.name);
  $('confirm-text').textContent = force ? w.forceText : w.refreshText;
  $('confirm-budget').replaceChildren(...facts([[w.budgets, ...budgetTexts(account.budgets).map((text) => h('div', { text }))]]));
  $('confirm-result').textContent = '';
  $('confirm-result').className = '';
  $('confirm-no').textContent = w.cancel;
  yes.textContent = force ? w.doForce : w.doRefresh;
  yes.className = force ? 'primary danger' : 'primary';
  yes.hidden = false;
  yes.disabled = false;
  yes.onclick = () => order(account.name, force, yes);
  dialog.showModal();
  $('confirm-no').focus();
}

async function order(name, force, button) {
  button.disabled = true;
  $('confirm-result').className = 'muted';
  $('confirm-result').textContent = w.working;
  try {
    const done = await call('POST', `/api/accounts/${encodeURIComponent(name)}/refresh`, { force });
    $('confirm-result').className = 'ok';
    $('confirm-result').textContent = (done.refreshed ? w.refreshed : w.same)(done.generation);
  } catch (failure) {
    $('confirm-result').className = 'bad';
    $('confirm-result').textContent = failure instanceof ApiFailure ? failure.message : w.unreachable;
  }
  button.hidden = true;
  $('confirm-no').textContent = w.close;
  $('confirm-no').focus();
  schedule(0);
}

// ---- Clients and store ----

function reasonLines(reasons, suffix) {
  return Object.entries(reasons).map(([reason, count]) => h('div', { text: `${reason} ${count}${suffix}` }));
}

function renderClients(clients) {
  $('clients').replaceChildren(...clients.map((client) => {
    const denied = [...reasonLines(client.denied, ''), ...reasonLines(client.overlooked, ` (${w.wouldBe})`)];
    return h('tr', {}, h('td', { text: client.name }), h('td', { className: 'number', text: client.calls }),
      h('td', { className: 'number', text: client.failed }),
      h('td', { className: denied.length ? 'warn' : 'muted' }, ...(denied.length ? denied : [w.none])));
  }));
  $('clients-empty').hidden = clients.length > 0;
}

function renderStore({ store, listen }) {
  const errors = Object.entries(store.errors).filter(([, count]) => count > 0);
  const peers = [...events.values()].filter((event) => event.kind === 'fetched_by_peer').length;
  $('store').replaceChildren(...facts([
    [w.kind, store.kind],
    [w.shared, store.shared ? w.sharedYes : w.sharedNo],
    [w.storeErrors, ...(errors.length ? errors.map(([name, count]) => h('div', { className: 'warn', text: `${name} ${count}` })) : [w.none])],
    ...(store.shared ? [[w.peerTokens, w.seen(peers)]] : []),
    [w.listen, ...listen.map((address) => h('div', { className: 'mono', text: address }))],
  ]));
}

// ---- Begin ----

let typing = null;
function search() {
  clearTimeout(typing);
  typing = setTimeout(() => {
    offset = 0;
    schedule(0);
  }, 250);
}

function turn(step) {
  offset = Math.max(0, offset + step * PAGE);
  schedule(0);
}

$('login-form').addEventListener('submit', logIn);
$('logout').addEventListener('click', logOut);
$('language').addEventListener('click', switchLanguage);
$('search').addEventListener('input', search);
$('state').addEventListener('change', search);
$('previous').addEventListener('click', () => turn(-1));
$('next').addEventListener('click', () => turn(1));
document.addEventListener('visibilitychange', () => {
  if (document.visibilityState === 'visible' && !$('main').hidden) schedule(0);
});
translate();
start();
