'use strict';

// Calls WeChat as a service that uses node-easywechat does, through wxgate, while the token dies twice; see common.js.

const fs = require('fs');
const path = require('path');
const { MiniApp, OfficialAccount } = require('node-easywechat');
const { appid, base, isJpeg, key, picture, revoke, run, sha256, user } = require('./common');

// What this SDK leaves to its user.
const checked = (response) => {
  const answer = response.toObject();
  if (answer.errcode) throw new Error(JSON.stringify(answer));
  return answer;
};

run(async (folder) => {
  const settings = {
    app_id: appid,
    secret: key,
    use_stable_access_token: process.argv[5] === 'stable',
    http: { baseURL: `${base}/`, timeout: 30000 },
    file_cache: { path: `${folder}/cache/` },
  };
  const app = new OfficialAccount(settings);
  const client = app.getClient();
  const file = path.join(folder, 'picture.jpg');
  fs.writeFileSync(file, picture);
  const text = (content) => ({ touser: user, msgtype: 'text', text: { content } });

  const found = checked(await client.get('/cgi-bin/user/info', { params: { openid: user } }));
  const sent = checked(await client.postJson('/cgi-bin/message/custom/send', text('你好 from node-easywechat')));
  await revoke();
  const media = { params: { type: 'image' } };
  const uploaded = checked(await client.withFile(file, 'media').post('/cgi-bin/media/upload', media));
  const binary = { responseType: 'arraybuffer' };
  const wanted = { params: { media_id: uploaded.media_id }, ...binary };
  const downloaded = (await client.get('/cgi-bin/media/get', wanted)).getContent();
  const code = (await client.postJson('/wxa/getwxacodeunlimit', { scene: 'scene=1' }, { ...binary })).getContent();
  const menu = checked(await client.get('/cgi-bin/menu/get'));
  await revoke();
  const again = checked(await client.postJson('/cgi-bin/message/custom/send', text('again')));
  const followers = checked(await client.get('/cgi-bin/user/get'));
  const scene = { action_name: 'QR_STR_SCENE', action_info: { scene: { scene_str: 'a' } } };
  const ticket = checked(await client.postJson('/cgi-bin/qrcode/create', scene));

  // What the SDK sends as secret is all that says who calls.
  const session = await new MiniApp(settings).getUtils().codeToSession('code-1');

  return {
    token: await app.getAccessToken().getToken(),
    user: found.openid,
    sent: sent.errcode,
    uploaded_sha256: sha256(picture),
    downloaded_sha256: sha256(downloaded),
    code_is_jpeg: isJpeg(code),
    menu,
    again: again.errcode,
    followers: followers.total,
    ticket: ticket.ticket,
    session: session.openid,
  };
});
