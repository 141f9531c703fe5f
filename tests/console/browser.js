// Drives a headless Chromium over its debugging pipe: nothing but Node's own library, no port.

'use strict';

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const LIMIT = 60000;
const FLAGS = [
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--hide-scrollbars', '--force-color-profile=srgb',
  '--no-proxy-server', '--remote-debugging-pipe',
];

const isInstalled = (program) =>
  process.env.PATH.split(path.delimiter).some((folder) => fs.existsSync(path.join(folder, program)));

class Browser {
  /** Starts the browser of this machine with a profile of its own. */
  static async start() {
    const program = ['chromium', 'chromium-browser', 'google-chrome'].find(isInstalled);
    if (!program) throw new Error('there is no Chromium here: run scripts/setup');
    const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'wxgate-browser-'));
    const child = spawn(program, [...FLAGS, `--user-data-dir=${profile}`, 'about:blank'], {
      stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
    });
    const browser = new Browser(child, profile);
    await browser.send('Target.setDiscoverTargets', { discover: true });
    return browser;
  }

  constructor(child, profile) {
    Object.assign(this, { child, profile, next: 1, waiting: new Map(), listeners: [] });
    let rest = Buffer.alloc(0);
    child.stdio[4].on('data', (bytes) => {
      rest = Buffer.concat([rest, bytes]);
      for (let end = rest.indexOf(0); end >= 0; end = rest.indexOf(0)) {
        this.heard(JSON.parse(rest.subarray(0, end).toString('utf8')));
        rest = rest.subarray(end + 1);
      }
    });
    child.stdio[3].on('error', () => {});
    child.on('exit', () => {
      for (const { no } of this.waiting.values()) no(new Error('the browser has ended'));
      this.waiting.clear();
    });
  }

  heard(message) {
    const { id, error, result } = message;
    const waiting = this.waiting.get(id);
    if (waiting) {
      this.waiting.delete(id);
      if (error) waiting.no(new Error(`${waiting.method}: ${error.message}`));
      else waiting.yes(result);
      return;
    }
    for (const listener of this.listeners) listener(message);
  }

  send(method, params = {}, sessionId) {
    const id = this.next++;
    return new Promise((yes, no) => {
      this.waiting.set(id, { yes, no, method });
      this.child.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    });
  }

  /** Opens a page in a context of its own, which shares no cookie with the others. */
  async page({ width = 1280, height = 900, dark = false, language = 'en-US' } = {}) {
    const { browserContextId } = await this.send('Target.createBrowserContext');
    const { targetId } = await this.send('Target.createTarget', { url: 'about:blank', browserContextId });
    const { sessionId } = await this.send('Target.attachToTarget', { targetId, flatten: true });
    const page = new Page(this, sessionId);
    await page.send('Page.enable');
    await page.send('Runtime.enable');
    await page.send('Log.enable');
    await page.send('Network.enable');
    // Reports of the policy also stand in the log, but not all of them in all versions.
    const source = `window.violations = []; addEventListener('securitypolicyviolation', ({ violatedDirective, blockedURI, sourceFile }) => window.violations.push(violatedDirective + ' ' + blockedURI + ' ' + sourceFile));`;
    await page.send('Page.addScriptToEvaluateOnNewDocument', { source });
    await page.send('Emulation.setLocaleOverride', { locale: language });
    await page.send('Network.setUserAgentOverride', { userAgent: 'wxgate-test', acceptLanguage: language });
    await page.look({ width, height, dark });
    return page;
  }

  async stop() {
    const ended = new Promise((done) => (this.child.exitCode !== null || this.child.signalCode !== null ? done() : this.child.once('exit', done)));
    this.send('Browser.close').catch(() => {});
    await Promise.race([ended, new Promise((done) => setTimeout(done, 10000))]);
    this.child.kill('SIGKILL');
    await ended;
    fs.rmSync(this.profile, { recursive: true, force: true, maxRetries: 10, retryDelay: 200 });
  }
}

class Page {
  constructor(browser, sessionId) {
    // Everything that the browser has to complain of, and every dialog.
    Object.assign(this, { browser, sessionId, complaints: [], dialogs: [], requests: [] });
    browser.listeners.push((message) => {
      if (message.sessionId === sessionId) this.heard(message);
    });
  }

  heard({ method, params }) {
    if (method === 'Log.entryAdded') this.complaints.push(`${params.entry.source}: ${params.entry.text} ${params.entry.url || ''}`);
    if (method === 'Runtime.exceptionThrown') {
      const { exceptionDetails: what } = params;
      this.complaints.push(`exception: ${what.exception?.description || what.text}`);
    }
    if (method === 'Network.requestWillBeSent') this.requests.push(params.request.url);
    if (method === 'Page.javascriptDialogOpening') {
      this.dialogs.push(params.message);
      this.send('Page.handleJavaScriptDialog', { accept: true }).catch(() => {});
    }
  }

  send(method, params) {
    return this.browser.send(method, params, this.sessionId);
  }

  async look({ width, height, dark }) {
    await this.send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: width < 600 });
    await this.send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }] });
  }

  async open(url) {
    await this.send('Page.navigate', { url });
  }

  /** Value of an expression in the page. */
  async value(expression) {
    const { result, exceptionDetails } = await this.send('Runtime.evaluate', { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description || exceptionDetails.text}`);
    return result.value;
  }

  /** Waits until an expression is true. */
  async until(expression) {
    const end = Date.now() + LIMIT;
    for (;;) {
      let value;
      let problem = '';
      try {
        value = await this.value(expression);
      } catch (error) {
        // The page may just be replaced by the next one, or not be there yet.
        problem = error.message;
      }
      if (value) return value;
      if (Date.now() > end) {
        const shown = await this.value('document.body.innerText').catch(() => '');
        throw new Error(`never true: ${expression}\n${problem}\n${shown.slice(0, 3000)}\n${this.complaints.join('\n')}`);
      }
      await new Promise((done) => setTimeout(done, 50));
    }
  }

  async press(key, { shift = false } = {}) {
    const codes = { Tab: 9, Enter: 13, Escape: 27, ' ': 32 };
    const base = { key, code: key === ' ' ? 'Space' : key, windowsVirtualKeyCode: codes[key], modifiers: shift ? 8 : 0 };
    const text = { Enter: '\r', ' ': ' ' }[key];
    await this.send('Input.dispatchKeyEvent', { type: text ? 'keyDown' : 'rawKeyDown', text, ...base });
    await this.send('Input.dispatchKeyEvent', { type: 'keyUp', ...base });
  }

  async type(text) {
    await this.send('Input.insertText', { text });
  }

  async screenshot(file, { height } = {}) {
    const clip = height ? { x: 0, y: 0, width: await this.value('innerWidth'), height, scale: 1 } : undefined;
    const { data } = await this.send('Page.captureScreenshot', { format: 'png', clip, captureBeyondViewport: Boolean(clip) });
    fs.writeFileSync(file, Buffer.from(data, 'base64'));
  }
}

module.exports = { Browser };
