'use strict';

// Calls WeChat as a service that uses wechat-api does, through wxgate, while the token dies twice; see common.js.

const fs = require('fs');
const path = require('path');
const { promisify } = require('util');
const WechatAPI = require('wechat-api');
const { appid, base, key, picture, revoke, run, sha256, user } = require('./common');

run(async (folder) => {
  const api = new WechatAPI(appid, key);
  api.setOpts({ timeout: 30000 });
  api.endpoint = base;
  const call = (name, ...given) => promisify(api[name]).apply(api, given);
  const file = path.join(folder, 'picture.jpg');
  fs.writeFileSync(file, picture);

  const found = await call('getUser', user);
  const sent = await call('sendText', user, '你好 from wechat-api');
  await revoke();
  const uploaded = await call('uploadMedia', file, 'image');
  const downloaded = await call('getMedia', uploaded.media_id);
  const menu = await call('getMenu');
  await revoke();
  const again = await call('sendText', user, 'again');
  const followers = await call('getFollowers');
  const templates = await call('getAllPrivateTemplate');
  const ticket = await call('createTmpQRCode', 'a', 60);
  const colors = await call('getColors');

  return {
    token: (await call('getLatestToken')).accessToken,
    user: found.openid,
    sent: sent.errcode,
    uploaded_sha256: sha256(picture),
    downloaded_sha256: sha256(downloaded),
    menu,
    again: again.errcode,
    followers: followers.total,
    templates: templates.template_list.length,
    ticket: ticket.ticket,
    literals: [colors.errcode],
  };
});
