#!/usr/bin/env bash
#
# co-wechat-api 3.11.0 (npm): does it read any valid JSON answer?
#
# Guess: yes; it repairs raw control characters inside strings, which WeChat sometimes sends.
# Seen:  the repair does not know strings from the space between them, so every line end becomes the
#        two characters `\n`: an answer that is printed over several lines is an error, and with
#        `text/plain` it is handed over as a string without a look at its errcode. Escapes inside
#        strings are read as they should be.
#
# For a server in WeChat's place: JSON on one line.

set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
npm init -y >/dev/null
npm install --silent --ignore-scripts --no-audit --no-fund co-wechat-api@3.11.0

cat >run.js <<'JS'
const http = require('http');
const API = require('co-wechat-api');
const answers = [
  ['application/json', '{"remark":"a \\"b\\" \\u0063"}'],
  ['application/json', '{\n  "remark": "a"\n}'],
  ['text/plain', '{\n  "errcode": 40003\n}'],
];
let next = 0;
const server = http.createServer((request, response) => {
  const [type, body] = answers[next++];
  response.setHeader('Content-Type', type);
  response.end(body);
});
server.listen(0, '127.0.0.1', async () => {
  const api = new API('wx0123456789abcdef', 's');
  for (const _ of answers) {
    try {
      const data = await api.request(`http://127.0.0.1:${server.address().port}/`);
      console.log(typeof data, typeof data === 'string' ? JSON.stringify(data) : data.remark);
    } catch (error) {
      console.log(error.name, error.message.split('.')[1].split(' ')[0]);
    }
  }
  process.exit(0);
});
JS
said=$(node run.js)
printf '%s\n' "$said"
[[ $said == 'object a "b" c
WeChatAPIError parse
string "{\n  \"errcode\": 40003\n}"' ]]
