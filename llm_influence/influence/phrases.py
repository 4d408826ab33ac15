"""Phrases of the sentences, by language: a table of the same keys for each."""

# ruff: noqa: RUF001 - typographic signs are meant: these texts are for people.

# "did" is what follows "you"; "which" is a clause about the item. A key without its last part
# is the phrase for all other cases.
ENGLISH = {
    "target": "“{name}” ({chance})",
    "target.behavior": "‘{name}’ ({chance})",
    "target.slate": "the list “{name}”",
    "target.drawn": "“{name}” over the mean of all items",
    "target.feedback": "positive feedback on “{name}” ({chance})",
    "target.feedback_value": "the feedback on “{name}” ({value})",
    "chance": "{chance}",
    "chance.place": "{chance}, {rank} of {candidates} items",
    "subject": "“{name}” is predicted ({chance})",
    "subject.recommended": "“{name}” is recommended ({chance})",
    "subject.behavior": "‘{name}’ is predicted as the next action ({chance})",
    "subject.slate": "The list “{name}” stands",
    "subject.drawn": "“{name}” is compared with the mean of all items",
    "subject.feedback": "Positive feedback on “{name}” is predicted ({chance})",
    "subject.feedback_value": "Feedback of {value} on “{name}” is predicted",
    "supports": "{subject} {carries} you {reasons}{against}.",
    "carries.all": "because",
    "carries.most": "mostly because",
    "carries.top": "above all because",
    "reason": "{did} ({when}, {score})",
    "reasons.between": ", ",
    "reasons.last": " and ",
    "against": "; {events}, speak against it",
    "against.one": "; {events}, speaks against it",
    "supports.none": "{subject}; no single action stands out for it{against}.",
    "separate": "{subject}. {rest}. These numbers do not add up to the prediction.",
    "separate.both": "Most for it is {supporting}; most against it is {opposing}",
    "separate.for": "Most for it is {supporting}",
    "separate.against": "Most against it is {opposing}",
    "within_errors": (
        "None of your {events} actions stands out for or against {target}: "
        "every single effect is within its error."
    ),
    "within_errors.one": (
        "Your only action does not stand out for or against {target}: "
        "its effect is within its error."
    ),
    "together": " Your {count} other actions together: {score}{error} {unit}.",
    "together.older": " Your {count} older actions together: {score}{error} {unit}.",
    "together.error": " ± {error}",
    "unsettled": " The estimate has not settled: its errors reach ± {error} {unit}.",
    "moves_nothing": "None of your {events} actions moves {target}.",
    "moves_nothing.one": "Your only action does not move {target}.",
    "only_opposes": "Your only action speaks against {target}: {event}.",
    "opposes": "Your actions speak more against {target} than for it: {rest}.",
    "opposes.even": "Your actions speak as much for {target} as against it: {rest}.",
    "opposes.alone": "most against it is {opposing}, and none speaks for it",
    "opposes.both": "most against it is {opposing}; most for it is {supporting}",
    "opposes.for": "most for it is {supporting}",
    "no_share": "For {target} the method ‘{method}’ gives weight to none of your actions.",
    "share": (
        "For {target} the method ‘{method}’ gives its largest share to {events}. "
        "A share does not say whether an action speaks for or against."
    ),
    "share.baseline": (
        "For {target} the baseline method ‘{method}’ gives its largest weight to {events}. "
        "It is a yardstick for other methods and says nothing about the model."
    ),
    "share.attention": (
        "For {target} the model looked mostly at {events}. "
        "Attention says where the model looked, not whether an action speaks for or against."
    ),
    "share.attention_top": (
        "For {target} the model looked most at {events}. "
        "Attention says where the model looked, not whether an action speaks for or against."
    ),
    "event": "“{name}”, {which} ({when}, {score})",
    "event.only": "“{name}”, {which} ({score})",
    "event.removed": "“{name}”, {which} ({when})",
    "events.between": ", and ",
    "did": "did ‘{behavior}’ on “{name}”",
    "did.click": "clicked “{name}”",
    "did.view": "viewed “{name}”",
    "did.cart": "put “{name}” in your cart",
    "did.purchase": "bought “{name}”",
    "did.rate": "rated “{name}”",
    "did_value": "rated “{name}” {value}",
    "did.favourite": "marked “{name}” as a favourite",
    "did.unread": "have “{name}” in your history",
    "which.unread": "which is in your history{amount}",
    "which": "on which you did ‘{behavior}’{amount}",
    "which.click": "which you clicked{amount}",
    "which.view": "which you viewed{amount}",
    "which.cart": "which you put in your cart{amount}",
    "which.purchase": "which you bought{amount}",
    "which.rate": "which you rated",
    "which_value": "which you rated {value}",
    "which.favourite": "which you marked as a favourite{amount}",
    "amount": ", value {value}",
    "when": "{duration} earlier",
    "when.order": "{count} actions before your latest",
    "when.order.one": "the action before your latest",
    "when.only": "your only action",
    "when.latest": "your latest action",
    "when.same": "at the same moment as your latest action",
    "score": "{score} {unit}",
    "score.of_total": "{score} of {total} {unit}",
    "score.attention": "{score} of attention",
    "score.share": "{score} of the whole",
    "memory": (
        " {share} of this probability came through transitions and revisits{because}, "
        "the rest through the language model{associated}."
    ),
    "memory.because": " (people who {did} went on to “{target}”)",
    "memory.because.again": " (people who {did} came back to it)",
    "memory.associated": " with associations",
    "people.cart": "put “{name}” in their cart",
    "change.items": (
        " The list would change most without {event}: {stays} of its {size} items would stay, "
        "{leaves} would leave, and {enters} would enter."
    ),
    "change.order": (
        " Without any single action all {size} items would stay on the list. Its order would "
        "change most without {event}: {moved} of them would be at another place."
    ),
    "change.none": " No single action changes the list: without any one of them it stays as it is.",
    "listed": "“{name}”",
    "listed.more": "{count} more",
    "listed.between": ", ",
    "listed.last": " and ",
}

CHINESE = {
    "target": "“{name}”（概率{chance}）",
    "target.slate": "列表“{name}”",
    "target.drawn": "“{name}”（相对于全部商品的平均）",
    "target.feedback": "“{name}”的正面反馈（概率{chance}）",
    "target.feedback_value": "“{name}”的反馈值{value}",
    "chance": "{chance}",
    "chance.place": "{chance}，在{candidates}个物品中排第{rank}",
    "subject": "预测{target}",
    "subject.recommended": "推荐{target}",
    "subject.behavior": "预测下一步行为是{target}",
    "subject.slate": "得出{target}",
    "supports": "{subject}，{carries}你{reasons}{against}。",
    "carries.all": "因为",
    "carries.most": "主要因为",
    "carries.top": "首要原因是",
    "reason": "{did}（{when}，{score}）",
    "reasons.between": "，又",
    "reasons.last": "，又",
    "against": "；而{events}起反作用",
    "supports.none": "{subject}，但没有哪一次行为单独突出地支持它{against}。",
    "separate": "{subject}。{rest}。这些数字之和不等于预测值。",
    "separate.both": "最有利的是{supporting}；最不利的是{opposing}",
    "separate.for": "最有利的是{supporting}",
    "separate.against": "最不利的是{opposing}",
    "within_errors": "你的{events}次行为中没有一次对{target}有突出影响：每次的影响都在误差以内。",
    "within_errors.one": "你唯一的行为对{target}没有突出影响：其影响在误差以内。",
    "together": "你其余{count}次行为合计：{unit}{score}{error}。",
    "together.older": "你较早的{count}次行为合计：{unit}{score}{error}。",
    "together.error": "±{error}",
    "unsettled": "估计尚未收敛：误差可达±{error}。",
    "moves_nothing": "你的{events}次行为都没有影响{target}。",
    "moves_nothing.one": "你唯一的行为没有影响{target}。",
    "only_opposes": "你唯一的行为不利于{target}：{event}。",
    "opposes": "你的行为对{target}弊大于利：{rest}。",
    "opposes.even": "你的行为对{target}利弊相当：{rest}。",
    "opposes.alone": "最不利的是{opposing}，没有一次行为支持它",
    "opposes.both": "最不利的是{opposing}；最有利的是{supporting}",
    "opposes.for": "最有利的是{supporting}",
    "no_share": "对于{target}，方法“{method}”没有给你的任何行为以权重。",
    "share": "对于{target}，方法“{method}”给予最大份额的是{events}。份额不说明支持还是反对。",
    "share.baseline": (
        "对于{target}，基线方法“{method}”给予最大权重的是{events}。"
        "它只是其他方法的对照，与模型无关。"
    ),
    "share.attention": (
        "对于{target}，模型主要关注{events}。注意力只说明模型看了哪里，不说明支持还是反对。"
    ),
    "share.attention_top": (
        "对于{target}，模型最关注{events}。注意力只说明模型看了哪里，不说明支持还是反对。"
    ),
    "event": "{which}“{name}”（{when}，{score}）",
    "event.only": "{which}“{name}”（{score}）",
    "event.removed": "{which}“{name}”（{when}）",
    "events.between": "和",
    "did": "对“{name}”做了“{behavior}”",
    "did.click": "点击了“{name}”",
    "did.view": "浏览了“{name}”",
    "did.cart": "把“{name}”加入了购物车",
    "did.purchase": "购买了“{name}”",
    "did.rate": "评价了“{name}”",
    "did_value": "给“{name}”打了{value}分",
    "did.favourite": "收藏了“{name}”",
    "did.unread": "有过“{name}”",
    "which.unread": "你历史中{amount}的",
    "which": "你做过“{behavior}”{amount}的",
    "which.click": "你点击{amount}的",
    "which.view": "你浏览{amount}的",
    "which.cart": "你加入购物车{amount}的",
    "which.purchase": "你购买{amount}的",
    "which.rate": "你评价的",
    "which_value": "你打了{value}分的",
    "which.favourite": "你收藏{amount}的",
    "amount": "（数值{value}）",
    "when": "此前{duration}",
    "when.order": "最近一次行为之前第{count}次",
    "when.order.one": "最近一次行为的前一次",
    "when.only": "唯一的行为",
    "when.latest": "最近一次行为",
    "when.same": "与最近一次行为同时",
    "score": "{unit}{score}",
    "score.of_total": "{unit}{total}中的{score}",
    "score.attention": "注意力占{score}",
    "score.share": "份额{score}",
    "memory": "这一概率的{share}来自转移与重访{because}，其余来自语言模型{associated}。",
    "memory.because": "（{did}的人接着选择了“{target}”）",
    "memory.because.again": "（{did}的人会再次选择它）",
    "memory.associated": "（含关联）",
    "change.items": (
        "若没有{event}，列表变化最大：{size}项中保留{stays}项，{leaves}退出，{enters}进入。"
    ),
    "change.order": (
        "去掉任何一次行为，列表的{size}项都会保留。若没有{event}，次序变化最大：其中{moved}项换了位置。"
    ),
    "change.none": "没有哪一次行为能单独改变列表：去掉任何一次，列表都不变。",
    "listed": "“{name}”",
    "listed.more": "另外{count}项",
    "listed.between": "、",
    "listed.last": "和",
    "unit.log-odds": "对数几率",
    "unit.points": "分",
}

PHRASES = {"en": ENGLISH, "zh": CHINESE}
