'use strict';

// Calls WeChat as a service that uses co-wechat-api does, through wxgate, while the token dies twice; see common.js.

const WechatAPI = require('co-wechat-api');
const { appid, base, isJpeg, isTakenOver, key, literal, picture, revoke, run, sha256, user } = require('./common');

run(async () => {
  const api = new WechatAPI(appid, key);
  api.setOpts({ timeout: 30000 });
  for (const prefix of ['prefix', 'snsPrefix', 'payPrefix', 'merchantPrefix', 'customservicePrefix', 'wxaPrefix']) {
    api[prefix] = api[prefix].replace(literal, base);
  }

  const found = await api.getUser(user);
  const sent = await api.sendText(user, '你好 from co-wechat-api');
  await revoke();
  const uploaded = await api.uploadMedia(picture, 'image', 'picture.jpg', 'image/jpeg');
  const downloaded = await api.getMedia(uploaded.media_id);
  const code = await api.getWXACodeUnlimit('scene=1', 'pages/index');
  const menu = await api.getMenu();
  await revoke();
  const again = await api.sendText(user, 'again');
  const followers = await api.getFollowers();
  const template = await api.sendTemplate(user, 'template-1', '', '#FF0000', { first: { value: 'hello' } });
  // What the SDK sends as secret is all that says who calls.
  const session = await api.code2Session('code-1');
  const ticket = await api.createTmpQRCode('a', 60);
  // The host is written into these two, whatever the prefixes say.
  const literals = isTakenOver ? [await api.getColors(), await api.addKfAccount('kf@shop', 'nick')] : [];

  return {
    token: (await api.ensureAccessToken()).accessToken,
    user: found.openid,
    sent: sent.errcode,
    uploaded_sha256: sha256(picture),
    downloaded_sha256: sha256(downloaded),
    code_is_jpeg: isJpeg(code),
    menu,
    again: again.errcode,
    followers: followers.total,
    template: template.errcode,
    ticket: ticket.ticket,
    session: session.openid,
    literals: literals.map((answer) => answer.errcode),
  };
});
