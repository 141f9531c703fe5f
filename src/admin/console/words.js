// Texts of the console in both languages. Whatever comes from outside is put in as text, never as markup.

const en = {
  skip: 'Skip to the accounts', login: 'Log in', logout: 'Log out', key: 'Admin key',
  loginHint: 'With the value of admin.key. The session lasts 8 hours.',
  wrongKey: 'This is not the admin key.', tooMany: (s) => `Too many wrong keys came from this address. Try again in ${s}.`,
  unreachable: 'wxgate does not answer. Is it running?', sessionOver: 'The session is over: log in again.',
  summary: 'Summary', plots: 'Plots of the last half hour', accounts: 'Accounts', events: 'Events', clients: 'Clients',
  storeNodes: 'Store and nodes', search: 'Name, error code, IP …', stateFilter: 'State', allStates: 'All states',
  pages: 'Pages of accounts', previous: 'Previous', next: 'Next', page: (a, b, n) => `${a}–${b} of ${n}`,
  found: (n, total) => (n === total ? `${total}` : `${n} of ${total}`), nothingFound: 'No account fits.',
  noEvents: 'Nothing has happened yet.', noClients: 'Nobody has called yet.',
  ready: 'ready', notReady: 'not ready', live: 'live', notLive: 'connecting …',
  node: 'Node', up: (s) => `up ${s}`, usable: (n) => `${n} usable`, trouble: (n) => `${n} need attention`, allWell: 'all well',
  callsNow: 'Calls per second', callsPerSecond: 'Calls per second', latency: 'Latency in ms, from a request’s head to its answer’s head',
  errorCodes: 'Error codes of WeChat per minute', errorsNow: 'Failed calls', lastMinutes: 'last 5 min', inFlight: 'Under way', store: 'Store', p95: 'Latency p95',
  ok: 'ok', failed: 'Failed', client: 'Client', calls: 'Calls', denied: 'Denied', none: 'none', wouldBe: 'would be denied',
  noData: 'No calls in this time', total: 'all',
  states: { ok: 'Works', waiting: 'Waits for its token', degraded: 'Works, needs attention', failing: 'Fails, trying again', fatal: 'Fails until you act' },
  token: 'Token', generation: 'Generation', nth: (n) => `gen. ${n}`, age: 'Fetched', ago: (s) => `${s} ago`, remaining: (s) => `${s} left`, noToken: 'no token',
  nextRefresh: 'Next refresh', nextIn: (s) => `in ${s}`, now: 'under way', never: '–', life: 'Remaining life of the token',
  budgets: 'Left today', forcedLeft: (n) => `${n} forced by itself`, classicLeft: (n) => `${n} fetches`, noLimit: 'no limit known',
  conflicts: 'Conflicts', conflictAdvice: (n) => `Another program fetches tokens for this account (seen ${n} times): let it ask wxgate instead.`,
  tickets: 'Tickets', noTickets: 'none asked for', lastError: 'Last error', words: 'WeChat’s words', inRow: (n) => `${n} times in a row`,
  refusedIp: 'Refused IP', refresh: 'Refresh …', force: 'Force a refresh …', cancel: 'Cancel', close: 'Close',
  refreshTitle: (a) => `Refresh ${a}?`, forceTitle: (a) => `Force a refresh of ${a}?`,
  refreshText: 'Asks WeChat for a token now. A stable token that is still good stays the same; a classic one is replaced.',
  forceText: 'WeChat ends the current token at once. Programs that keep it without wxgate fail until they ask again. WeChat allows few of these a day, and one in some minutes.',
  doRefresh: 'Refresh', doForce: 'Force the refresh', working: 'Asking WeChat …',
  refreshed: (g) => `New token, generation ${g}.`, same: (g) => `WeChat gave the same token again (generation ${g}).`,
  kind: 'Kind', shared: 'Shared', sharedYes: 'yes: other nodes may use it', sharedNo: 'no: this node alone', storeErrors: 'Failures since the start',
  listen: 'Data listeners', peerTokens: 'Tokens from other nodes', seen: (n) => `${n} in the events shown`, gap: 'Some events in between are gone.',
  logTrouble: (n) => `The log loses lines (${n} so far): look at the program that reads standard error.`,
  stuckTrouble: (n) => `${n} worker threads do not answer: restart wxgate if it stays so.`,
  nodeErrors: { draining: 'This node is stopping.', no_account: 'No account is configured.', not_ready: 'No account has a usable token.', data_path_stuck: 'Worker threads do not answer.' },
  waitAdvice: 'The first token is on its way: wait a moment.',
  deadAdvice: 'WeChat refuses the token and gives no other: see the events, or force a refresh.',
  advice: {
    '-1': 'WeChat is busy. Nothing to do: the next attempt follows by itself.',
    40001: 'The AppSecret is wrong or belongs to another account: correct the account’s secret, then reload.',
    40013: 'The appid is invalid: correct the account’s appid, then reload.',
    40125: 'The AppSecret is invalid: correct the account’s secret, or reset it in WeChat’s console, then reload.',
    40164: 'WeChat refuses the IP of this node: add it to the account’s IP whitelist (IP白名单), then refresh.',
    40243: 'The AppSecret is frozen: unfreeze it in WeChat’s console, then refresh.',
    45009: 'The day’s quota of the token endpoint is used up: clear it at WeChat, or use token = "stable".',
    45011: 'Too many calls in this minute. Nothing to do: the next attempt follows by itself.',
    45035: 'WeChat refuses the IP of this node: add it to the shop’s whitelist, then refresh.',
    50004: 'The account may not use access tokens: see the notices in its backend.',
    50007: 'The account is frozen: see the notices in its backend.',
    60020: 'WeCom refuses the IP of this node: add it to the agent’s trusted IPs (企业可信IP), then refresh.',
    61004: 'WeChat refuses the IP of this node: add it to the whitelist, then refresh.',
    89503: 'An administrator of the account must confirm this IP in WeChat.',
    connect: 'No connection to WeChat: check DNS, the way out of this network and upstream.ca_file.',
    timeout: 'WeChat did not answer in time: check the network, or raise token.fetch_timeout.',
    broken: 'The connection to WeChat broke: check the network; the next attempt follows by itself.',
    status: 'Something between wxgate and WeChat answered: check the proxy and the account’s api.',
    redirect: 'Something between wxgate and WeChat answered with a redirect: check the account’s api.',
    malformed: 'The answer was no token: check what stands between wxgate and WeChat.',
    budget: 'The day’s budget is spent: find out who makes tokens die, or wait.',
    denied: 'The server that keeps this token refused wxgate: check its key and rights.',
    missing: 'The server that keeps this token has none: check key and field.',
    ended: 'The server that keeps this token has an expired one: have it refreshed there.',
    no_token: 'The account’s own token is missing: see its error.',
  },
  otherAdvice: 'See the last error below.',
  sentences: {
    fetched: (f) => `New ${f.credential}, generation ${f.generation} (${f.fingerprint})`,
    fetched_by_peer: (f) => `New ${f.credential} from another node, generation ${f.generation}`,
    recovered: () => 'The token endpoint works again', refused: (f, cause) => `No new ${f.credential}: ${cause}`,
    refused_to_peer: (f, cause) => `Another node was refused: ${cause}`, budget_spent: (f) => `The budget of ${f.budget} fetches is spent`,
    conflict: () => 'A token died early: another program fetches tokens for this account', degraded: (f, cause) => `Calls fail: ${cause}`,
    address_accepted: () => 'WeChat accepts the address of this node again', stale: (f) => `WeChat refused the token with ${f.errcode}`,
    replayed: (f) => (f.result === 'cured' ? 'The call was sent once more and went through' : `The call was not cured: ${f.result}`),
    denied: (f) => `${f.mode === 'report' ? 'Would be denied' : 'Denied'} ${f.reason}: ${f.method} ${f.path}`,
    reload: (f) => `The configuration was loaded again, ${f.accounts} accounts${f.restart_needed ? `; after a restart: ${f.restart_needed}` : ''}`,
    reload_refused: (f) => `The new configuration cannot be used: ${f.first}`,
    login: (f) => `Log-in from ${f.caller}`, login_failed: (f) => `Log-in with a wrong key from ${f.caller}`,
  },
  times: (n) => ` ×${n}`,
  units: { d: ' d', h: ' h', m: ' min', s: ' s' },
};

const zh = {
  skip: '跳到账号列表', login: '登录', logout: '退出', key: '管理密钥',
  loginHint: '请输入配置项 admin.key 的值，登录后 8 小时内有效。',
  wrongKey: '管理密钥不正确。', tooMany: (s) => `此地址输错次数过多，请在 ${s}后再试。`,
  unreachable: 'wxgate 没有响应，请确认它是否在运行。', sessionOver: '登录已失效，请重新登录。',
  summary: '概况', plots: '最近半小时的曲线', accounts: '账号', events: '事件', clients: '调用方',
  storeNodes: '存储与节点', search: '名称、错误码、IP …', stateFilter: '状态', allStates: '全部状态',
  pages: '账号分页', previous: '上一页', next: '下一页', page: (a, b, n) => `第 ${a}–${b} 个，共 ${n} 个`,
  found: (n, total) => (n === total ? `共 ${total} 个` : `${n} / ${total} 个`), nothingFound: '没有符合条件的账号。',
  noEvents: '还没有事件。', noClients: '还没有调用。',
  ready: '就绪', notReady: '未就绪', live: '实时', notLive: '连接中 …',
  node: '节点', up: (s) => `已运行 ${s}`, usable: (n) => `${n} 个可用`, trouble: (n) => `${n} 个需要关注`, allWell: '一切正常',
  callsNow: '每秒调用', callsPerSecond: '每秒调用次数', latency: '延迟（毫秒，从收到请求头到返回响应头）',
  errorCodes: '微信错误码（每分钟）', errorsNow: '失败调用', lastMinutes: '最近 5 分钟', inFlight: '处理中', store: '存储', p95: '延迟 p95',
  ok: '成功', failed: '失败', client: '调用方', calls: '调用', denied: '被拒绝', none: '无', wouldBe: '试运行中，本应拒绝',
  noData: '这段时间没有调用', total: '全部',
  states: { ok: '正常', waiting: '等待首个令牌', degraded: '可用，需要关注', failing: '失败，自动重试中', fatal: '失败，需要处理' },
  token: '令牌', generation: '代次', nth: (n) => `代次 ${n}`, age: '获取于', ago: (s) => `${s}前`, remaining: (s) => `剩余 ${s}`, noToken: '没有令牌',
  nextRefresh: '下次刷新', nextIn: (s) => `${s}后`, now: '进行中', never: '–', life: '令牌剩余有效期',
  budgets: '今日剩余', forcedLeft: (n) => `自动强制刷新 ${n} 次`, classicLeft: (n) => `获取 ${n} 次`, noLimit: '无已知限制',
  conflicts: '冲突', conflictAdvice: (n) => `有其他程序也在为此账号获取令牌（已发现 ${n} 次）：请让它改为向 wxgate 获取。`,
  tickets: '票据', noTickets: '未使用', lastError: '最近的错误', words: '微信原文', inRow: (n) => `连续 ${n} 次`,
  refusedIp: '被拒绝的 IP', refresh: '刷新 …', force: '强制刷新 …', cancel: '取消', close: '关闭',
  refreshTitle: (a) => `刷新 ${a}？`, forceTitle: (a) => `强制刷新 ${a}？`,
  refreshText: '立即向微信请求令牌。稳定版令牌若仍有效则保持不变；普通令牌会被替换。',
  forceText: '微信会立即作废当前令牌。绕过 wxgate 保存了旧令牌的程序会失败，直到重新获取。微信每天只允许少数几次，且有间隔要求。',
  doRefresh: '刷新', doForce: '强制刷新', working: '正在请求微信 …',
  refreshed: (g) => `已得到新令牌，代次 ${g}。`, same: (g) => `微信返回了同一个令牌（代次 ${g}）。`,
  kind: '类型', shared: '共享', sharedYes: '是，可供多个节点使用', sharedNo: '否，仅本节点', storeErrors: '启动以来的故障',
  listen: '数据监听地址', peerTokens: '来自其他节点的令牌', seen: (n) => `当前事件中 ${n} 个`, gap: '中间有部分事件已不可见。',
  logTrouble: (n) => `日志正在丢行（已丢 ${n} 行）：请检查读取标准错误输出的程序。`,
  stuckTrouble: (n) => `${n} 个工作线程没有响应：若持续如此，请重启 wxgate。`,
  nodeErrors: { draining: '本节点正在停止。', no_account: '没有配置账号。', not_ready: '没有账号拥有可用的令牌。', data_path_stuck: '工作线程没有响应。' },
  waitAdvice: '首个令牌正在获取，请稍候。',
  deadAdvice: '微信拒绝当前令牌且不给新的：请查看事件，或强制刷新。',
  advice: {
    '-1': '微信系统繁忙。无需处理，稍后会自动重试。',
    40001: 'AppSecret 错误或属于其他账号：请更正此账号的 secret 后重新加载配置。',
    40013: 'AppID 无效：请更正此账号的 appid 后重新加载配置。',
    40125: 'AppSecret 无效：请更正 secret，或在微信后台重置后更新，再重新加载配置。',
    40164: '微信拒绝本节点的 IP：请把它加入该账号的 IP 白名单，然后刷新。',
    40243: 'AppSecret 已被冻结：请在微信后台解冻，然后刷新。',
    45009: '令牌接口今日额度已用完：请在微信清零额度，或改用 token = "stable"。',
    45011: '本分钟调用过于频繁。无需处理，稍后会自动重试。',
    45035: '微信拒绝本节点的 IP：请加入小店的白名单，然后刷新。',
    50004: '此账号被禁止使用 access_token：请查看其后台通知。',
    50007: '此账号已被冻结：请查看其后台通知。',
    60020: '企业微信拒绝本节点的 IP：请加入应用的“企业可信IP”，然后刷新。',
    61004: '微信拒绝本节点的 IP：请加入白名单，然后刷新。',
    89503: '此 IP 需要账号管理员在微信中确认。',
    connect: '无法连接微信：请检查 DNS、网络出口和 upstream.ca_file。',
    timeout: '微信没有及时响应：请检查网络，或调大 token.fetch_timeout。',
    broken: '与微信的连接中断：请检查网络，稍后会自动重试。',
    status: '应答来自 wxgate 与微信之间的设备：请检查代理和此账号的 api。',
    redirect: 'wxgate 与微信之间的设备返回了跳转：请检查此账号的 api。',
    malformed: '应答中没有令牌：请检查 wxgate 与微信之间的设备。',
    budget: '今日额度已用完：请查明是谁让令牌失效，或等待。',
    denied: '保存此令牌的服务拒绝了 wxgate：请检查其密钥和权限。',
    missing: '保存此令牌的服务中没有令牌：请检查 key 与 field。',
    ended: '保存此令牌的服务中的令牌已过期：请在那里刷新。',
    no_token: '账号自身的令牌缺失：请看账号的错误。',
  },
  otherAdvice: '请看下方最近的错误。',
  sentences: {
    fetched: (f) => `新的 ${f.credential}，代次 ${f.generation}（${f.fingerprint}）`,
    fetched_by_peer: (f) => `来自其他节点的新 ${f.credential}，代次 ${f.generation}`,
    recovered: () => '令牌接口恢复正常', refused: (f, cause) => `未得到新的 ${f.credential}：${cause}`,
    refused_to_peer: (f, cause) => `其他节点被拒绝：${cause}`, budget_spent: (f) => `${f.budget} 类获取的额度已用完`,
    conflict: () => '令牌提前失效：有其他程序在为此账号获取令牌', degraded: (f, cause) => `调用失败：${cause}`,
    address_accepted: () => '微信重新接受本节点的地址', stale: (f) => `微信以 ${f.errcode} 拒绝了令牌`,
    replayed: (f) => (f.result === 'cured' ? '调用重发一次后成功' : `调用未能补救：${f.result}`),
    denied: (f) => `${f.mode === 'report' ? '本应拒绝' : '已拒绝'} ${f.reason}：${f.method} ${f.path}`,
    reload: (f) => `已重新加载配置，${f.accounts} 个账号${f.restart_needed ? `；重启后生效：${f.restart_needed}` : ''}`,
    reload_refused: (f) => `新配置无法使用：${f.first}`,
    login: (f) => `来自 ${f.caller} 的登录`, login_failed: (f) => `来自 ${f.caller} 的登录，密钥错误`,
  },
  times: (n) => ` ×${n}`,
  units: { d: ' 天', h: ' 小时', m: ' 分', s: ' 秒' },
};

export const languages = { en, zh };

/** Language to begin with: the one chosen before, else that of the browser. */
export function preferred() {
  let chosen = null;
  try { chosen = localStorage.getItem('wxgate.language'); } catch { /* storage is switched off */ }
  if (chosen in languages) return chosen;
  return (navigator.language || 'en').toLowerCase().startsWith('zh') ? 'zh' : 'en';
}

export function remember(language) {
  try { localStorage.setItem('wxgate.language', language); } catch { /* storage is switched off */ }
}

/** Duration in words, two units at most. */
export function span(w, seconds) {
  const { d, h, m, s } = w.units;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 120) return `${whole}${s}`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}${m}`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours}${h} ${minutes % 60}${m}` : `${hours}${h}`;
  return `${Math.floor(hours / 24)}${d}`;
}
