#!/usr/bin/env bash
#
# nest-wechat 0.2.50 (npm): what is `expires_in` in what getStableAccessToken() returns?
#
# Guess: WeChat's own value, seconds that are left.
# Seen:  seconds since 1970 at which the token ends, less 120: 7200 became a number near 1.8e9.
#        A service that hands the object on as a token answer gives its callers a lifetime of
#        decades. The same object is what the cache holds, with a lifetime of 7100 s of its own
#        however short WeChat's was, and tokens of the classic endpoint and of stable_token share one
#        key of it: getAccountAccessToken() replaces what getToken() gives out.

set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder"
npm init -y >/dev/null
npm install --silent --ignore-scripts --no-audit --no-fund nest-wechat@0.2.50 axios@1.7.9 \
    @nestjs/common@10.4.15 reflect-metadata@0.2.2 rxjs@7.8.1

cat >run.js <<'JS'
require('reflect-metadata');
// The URL is fixed in the library, so the answer comes from an adapter of the client it loads.
const axios = require(require.resolve('axios', { paths: [require.resolve('nest-wechat')] }));
const library = axios.default || axios;
library.defaults.adapter = async config => ({
  data: { access_token: config.url.includes('stable_token') ? 'stable' : 'classic', expires_in: 7200 },
  status: 200, statusText: 'OK', headers: {}, config,
});
const { WeChatService } = require('nest-wechat');
const lifetimes = [];
const cache = new Map();
const cacheAdapter = {
  get: async key => cache.get(key), remove: key => cache.delete(key), close() {},
  set: (key, value, seconds) => { lifetimes.push(seconds); cache.set(key, value); },
};
(async () => {
  const service = new WeChatService({ appId: 'wx0123456789abcdef', secret: 's', cacheAdapter });
  const now = Math.floor(Date.now() / 1000);
  const answer = await service.getStableAccessToken();
  console.log(`expires_in - now: ${Math.round((answer.expires_in - now) / 10) * 10}`);
  console.log(`lifetime in the cache: ${lifetimes[0]}`);
  const first = await service.getToken();
  await service.getAccountAccessToken();
  console.log(`getToken before and after a classic fetch: ${first} ${await service.getToken()}`);
})();
JS
said=$(node run.js)
printf '%s\n' "$said"
[[ $said == 'expires_in - now: 7080
lifetime in the cache: 7100
getToken before and after a classic fetch: stable classic' ]]
