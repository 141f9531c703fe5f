'use strict';

// Asks for a user with Node's own HTTP client. usage: plain_calls.js OPENID

const https = require('https');

const url = `https://api.weixin.qq.com/cgi-bin/user/info?access_token=any&openid=${process.argv[2]}`;
https.get(url, (answer) => answer.pipe(process.stdout)).on('error', (error) => {
  console.error(error);
  process.exitCode = 1;
});
