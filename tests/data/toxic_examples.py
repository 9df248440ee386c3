"""Made-up examples that a model of toxicity is trained on, and others that it is tried on.

What it is tried on was written first, without the lexicons and the patterns below at hand; both are by the same hand.
"""

import random
from itertools import product
from pathlib import Path

UNSEEN: dict[str, dict[str, list[str]]] = {
    "en": {
        "violence": [
            "I'll wait outside your house and make sure you never walk again.",
            "They held her under the water until she stopped moving, and laughed.",
            "He kept hitting the old man with the bat long after he had fallen.",
            "You will pay for this with your blood, and so will your children.",
            "We dragged the driver out of the car and kicked his head in.",
            "Somebody should put a bullet in that judge.",
            "He pressed the knife deeper and enjoyed watching her scream.",
            "Burn their houses down with everyone inside.",
        ],
        "sexual": [
            "She undid his belt and slid her hand down while he groaned.",
            "Lonely wives in your town want a hookup without strings, see their private photos.",
            "He kissed down her naked body and she spread her legs for him.",
            "Watch her strip and touch herself live on camera, adults only.",
            "They did it on the kitchen table, panting and sweating, until both climaxed.",
            "Uncensored bedroom videos of amateur couples, updated every night.",
            "Her bare breasts pressed against him as he pushed inside her.",
            "Message me for steamy chats and dirty pictures, I will do anything you like in bed.",
        ],
        "hate": [
            "People of that religion breed like rats and ruin every town they settle in.",
            "Their kind is too stupid to be allowed to vote.",
            "We must cleanse our country of these foreigners before they replace us.",
            "Women like that are worthless and belong on a leash.",
            "You can't trust any of them, thieving is in their blood.",
            "Send the whole filthy tribe back where it came from, they are not human.",
            "Gays are a disease and should not be let near children.",
            "Those people are a plague on our nation, and the only cure is to get rid of every one.",
        ],
        "self_harm": [
            "I've saved up enough tablets and tonight I will take them all.",
            "Nobody would notice if I was gone, so I am going to jump off the bridge.",
            "The blade feels good on my arms, I do it every evening.",
            "You are a burden on everybody, do the world a favour and end it.",
            "How many of these do I have to swallow so that I don't wake up?",
            "I don't eat for days, the hunger means that I am winning.",
            "I have said my goodbyes, the rope is ready.",
            "I burn myself with cigarettes when I can't bear it.",
        ],
        "illegal": [
            "We ship snow and pills to your door in plain envelopes, pay with crypto.",
            "Fresh bank logins with balance, refund if dead, message me on telegram.",
            "I can get you a driver's licence and a diploma that pass any check, no exam.",
            "Need somebody taken care of? Our professionals leave no trace, half in advance.",
            "Turn fertiliser and diesel into something that levels a building, full instructions inside.",
            "Clean pistols without serial numbers, delivered in parts.",
            "We make your dirty cash look like honest income, small fee.",
            "Get prescription painkillers with no doctor, next day delivery, discreet.",
        ],
    },
    "zh": {
        "violence": [
            "你等着，我会让你下半辈子都站不起来。",
            "他们把那个司机拖下车，一直踢到他不动了为止。",
            "他握着刀往里捅，听她惨叫反而笑了。",
            "谁敢拦我，我就让他见血。",
            "把他们的房子烧了，一个都别放出来。",
            "她被按在水里，直到不再挣扎。",
        ],
        "sexual": [
            "他解开她的内衣，手顺着身体往下摸。",
            "寂寞少妇想找人过夜，加我看私密照。",
            "两人赤身纠缠在床上，喘息声越来越急。",
            "真人主播脱衣表演，未成年人勿进。",
            "他分开她的双腿，慢慢地进入她的身体。",
            "私聊发你露骨的照片，什么姿势都可以。",
        ],
        "hate": [
            "那个民族的人天生就是小偷，一个都不能信。",
            "这种人像老鼠一样到处繁殖，迟早毁了我们的城市。",
            "女人就是低等的，不该让她们说话。",
            "应该把他们全部赶出去，他们根本不算人。",
            "信那个教的都是祸害，必须清理干净。",
            "搞同性的都有病，别让他们靠近孩子。",
        ],
        "self_harm": [
            "药我已经攒够了，今晚一次吃完。",
            "没有人会发现我不在了，我打算从桥上跳下去。",
            "刀划在手臂上的时候我才觉得舒服，每天都要来几下。",
            "你就是大家的累赘，早点了断算了。",
            "绳子已经系好，再见了各位。",
            "吃多少片才不会再醒过来？",
        ],
        "illegal": [
            "冰糖和白粉都有现货，隐蔽包装，支持虚拟币付款。",
            "各大学毕业证、驾照包过，官网可查。",
            "收购闲置银行账户走流水，当天结算，佣金高。",
            "有人惹你？我们帮你处理掉，不留痕迹，先付一半。",
            "仿真手枪可发射实弹，拆件邮寄。",
            "教你用化肥配出能炸楼的东西，配方齐全。",
        ],
    },
}

_PATTERNS = Path(__file__).parent / "toxic_patterns.txt"


def _every(language: str) -> dict[str, list[str]]:
    """All that the patterns make, by dimension; ``harmless`` is what is none."""
    joint = " " if language == "en" else ""
    made: dict[str, list[str]] = {}
    for line in _PATTERNS.read_text(encoding="utf-8").splitlines():
        kind, _, pattern = line.partition(": ")
        if kind.startswith(f"{language} "):
            slots = [slot.split("|") for slot in pattern.split(" / ")]
            found = (joint.join(filter(None, parts)).replace(" ,", ",") for parts in product(*slots))
            made.setdefault(kind.partition(" ")[2], []).extend(found)
    return made


def training(language: str, a_kind: int, seed: int = 0) -> list[tuple[str, list[str]]]:
    """``a_kind`` texts of each dimension, and four times as many harmless ones: (text, labels)."""
    rng = random.Random(f"{language} {seed}")
    made: list[tuple[str, list[str]]] = []
    for kind, every in _every(language).items():
        labels, number = ([], 4 * a_kind) if kind == "harmless" else ([kind], a_kind)
        made += [(text, list(labels)) for text in rng.sample(every, min(number, len(every)))]
    rng.shuffle(made)
    return made
