'use strict';

// What the scripts for Node SDKs have in common: what they send, the sandbox that kills a token, and the report.
//
// usage of each: SCRIPT BASE_URL SANDBOX_URL KEY
//
// BASE_URL is where the service believes WeChat's API to be; KEY stands where the AppSecret would. Prints one JSON
// object: what each call returned. Any error that the SDK raises ends the script. Nothing of an SDK is changed but
// its settings.

const { createHash } = require('crypto');
const fs = require('fs');
const os = require('os');
const path = require('path');

const LITERAL = 'https://api.weixin.qq.com';
const [base, sandbox, key] = process.argv.slice(2);

exports.appid = 'wx0123456789abcdef';
exports.literal = LITERAL;
exports.base = base;
exports.key = key;
exports.isTakenOver = base === LITERAL;
exports.user = 'o-sdk-user';
exports.picture = Buffer.alloc(256 * 512, Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)));

exports.sha256 = (content) => createHash('sha256').update(content).digest('hex');

exports.isJpeg = (content) => content.readUInt16BE(0) === 0xffd8 && content.readUInt16BE(content.length - 2) === 0xffd9;

exports.revoke = async () => {
  const answer = await fetch(`${sandbox}/sandbox/revoke`, { method: 'POST', body: '{}' });
  if (!answer.ok) throw new Error(`the sandbox answers ${answer.status}`);
};

// Runs the calls with a folder for files, and prints what they return.
exports.run = async (calls) => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'wxgate-sdk-'));
  try {
    console.log(JSON.stringify(await calls(folder)));
  } catch (error) {
    console.error(error);
    process.exitCode = 1;
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
};
