'use strict';

// Signs a page as a service that uses wechat-jssdk does, through wxgate.
//
// usage: wechat_jssdk_ticket.js BASE_URL KEY FOLDER
//
// KEY stands where the AppSecret would; FOLDER is for the SDK's file, which it writes in the background. Prints one
// JSON object: the ticket and the signature. Any error that the SDK reports ends the script. Nothing of the SDK is
// changed but its settings.

const path = require('path');
const { JSSDK } = require('wechat-jssdk');
const { appid, run } = require('./common');

const [base, key, folder] = process.argv.slice(2);

run(async () => {
  const sdk = new JSSDK({
    appId: appid,
    appSecret: key,
    accessTokenUrl: `${base}/cgi-bin/token`,
    ticketUrl: `${base}/cgi-bin/ticket/getticket`,
    storeOptions: { fileStorePath: path.join(folder, 'store.json') },
  });
  const { signature } = await sdk.getSignature('https://shop.example/');
  const { jsapi_ticket: ticket, accessToken: token } = await sdk.store.getGlobalToken();
  return { ticket, signature, token };
}).then(() => process.exit()); // The SDK keeps timers.
