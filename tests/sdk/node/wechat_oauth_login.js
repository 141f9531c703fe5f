'use strict';

// Logs a user of a web page in as a service that uses wechat-oauth does, through wxgate.
//
// usage: wechat_oauth_login.js BASE_URL APPID KEY CODE
//
// KEY stands where the AppSecret would; CODE is what WeChat's page came back with. Prints one JSON object: what each
// call returned. Any error that the SDK reports ends the script. Nothing of the SDK is changed but where its requests
// go.

const { promisify } = require('util');
const OAuth = require('wechat-oauth');
const { literal, run } = require('./common');

const [base, appid, key, code] = process.argv.slice(2);

run(async () => {
  const oauth = new OAuth(appid, key);
  oauth.setOpts({ timeout: 30000 });
  const { request } = oauth;
  oauth.request = (url, ...rest) => request.call(oauth, url.replace(literal, base), ...rest);
  const call = (name, ...given) => promisify(oauth[name]).apply(oauth, given);

  const login = (await call('getAccessToken', code)).data;
  const user = await call('getUser', login.openid);
  const checked = await call('verifyToken', login.openid, login.access_token);
  const refreshed = (await call('refreshAccessToken', login.refresh_token)).data;
  const again = await call('getUser', login.openid);

  return {
    openids: [login, user, refreshed, again].map((answer) => answer.openid),
    nickname: user.nickname,
    checked: checked.errcode === 0,
    tokens: [login.access_token, refreshed.access_token],
  };
});
