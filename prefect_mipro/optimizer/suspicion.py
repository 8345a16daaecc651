"""What a text must not hold when it is served to others: marks of an attack, and private data.

Patterns, so a net with holes: a paraphrase passes. They stand behind the rule that says whose texts
may be shown at all (`demonstrations.from_traffic`), and do not replace it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

CHAT_TOKEN = re.compile(
    r"<[|\uff5c][^<>\n]{1,40}[|\uff5c]>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>"
    r"|</?(?:tool_call|tool_response|tool_code|function_call|function_response|think)>",
    re.IGNORECASE,
)
_ROLE = re.compile(
    r"^[\s#*>\[(\u3010]*(?:system|developer|user|human|assistant|tool"
    r"|système|sistema|systém|systeem|система|ассистент|помощник|пользователь"
    r"|系统|系統|用户|用戶|助手|システム|ユーザー|アシスタント|시스템|사용자|어시스턴트"
    r"|ระบบ|ผู้ใช้|ผู้ช่วย|النظام|نظام|المستخدم|המערכת|מערכת|सिस्टम|प्रणाली)"
    r"[\s*\])\u3011]*(?:prompt|message)?\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_LINK = re.compile(
    r"""
    \b[a-z][a-z0-9+.-]{0,30}://[^\s/?\#"'<>()\]]*\w
    | \b(?:https?|ftp|file|data|javascript|vbscript):\S
    # Of the scheme of the page that shows it.
    | (?<![\w:/])//(?:[\w-]+(?:[.:][\w-]+)+|[\w-]+(?=/\w)|\[[0-9a-f:.]+\])
    | \bwww\.[\w.-]*\w | \]\(
    """,
    re.IGNORECASE | re.VERBOSE,
)
_HTML = re.compile(
    r"""
    </?(?:script|style|iframe|frame|frameset|object|embed|applet|svg|math|link|meta|base
        |form|img|video|audio|picture)(?=[\s/>])
    | <[a-z][^<>]*\b(?:on[a-z]+|href|src|srcset|style|action|formaction|poster)\s*=
    | <!(?:--|doctype\b) | &(?:\#[0-9]+|\#x[0-9a-f]+|[a-z]{2,8});
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Digits of any script, and separators that people write into numbers.
_MORE_DIGITS = r"\d(?:[ ./_\-\u2010-\u2015\u00b7]?\d)"
_DATE = re.compile(
    r"\b(?:\d{4}-\d{1,2}-\d{1,2}(?:[ T]\d{1,2}(?::\d{2})*)?|\d{1,2}([./])\d{1,2}\1\d{4})\b"
)
_ACCOUNT = re.compile(
    r"(?:\baccounts?\b|\bacct\b|\biban\b|\bswift\b|\bcard\b|\bpassport\b|\bssn\b|\bpassw(?:or)?d\b"
    r"|\bpin\b|\bkonto(?:nummer)?\b|\bkarten?(?:nummer)?\b|\bcompte\b|\bcarte\b|\bcuenta\b"
    r"|\btarjeta\b|\bconta\b|\bconto\b|\bcartão\b|\brekening\b|\bhesap\b|\brachunek\b|\bkonta\b"
    r"|сч[её]т\w*|карт[аыуе]\b|рахун\w+|帐号|帳號|账号|账户|帳戶|卡号|卡號|口座|カード|계좌|카드"
    r"|บัญชี|บัตร|حساب|بطاقة|חשבון|כרטיס|खाता|खाते|कार्ड|tài khoản|rekening)"
    rf"[^\d\n]{{0,24}}{_MORE_DIGITS}{{3,}}",
    re.IGNORECASE,
)
_TOLD_BEFORE = (
    r"previous|prior|above|earlier|preceding|other|all|your|any|instructions?|rules?|prompts?"
)
# Each language: the order, and what it is about. Where the object comes first, it stands first.
_ORDERS = (
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.\n]{0,40}\b(?:" + _TOLD_BEFORE + r")\b",
    r"\b(?:do not|don't|never|no longer|stop)\s+(?:follow|obey|heed|follow(?:ing)?|obeying)\b"
    r"[^.\n]{0,40}\b(?:" + _TOLD_BEFORE + r")\b",
    r"\bpay no (?:attention|heed)\b[^.\n]{0,40}\b(?:" + _TOLD_BEFORE + r")\b",
    r"\b(?:ignorier\w*|vergiss|vergesst|vergessen sie|missacht\w*|übergeh\w*)\b[^.\n]{0,40}"
    r"\b(?:vorherig\w*|bisherig\w*|obig\w*|alle\w*|anweisung\w*|regeln?|vorgaben?)\b",
    r"\b(?:ignor\w+|oubli\w+|ne ten\w+ pas compte)\b[^.\n]{0,40}"
    r"\b(?:précédent\w*|instructions?|consignes?|règles?|tou(?:t|s|tes))\b",
    r"\b(?:ignor\w+|olvid\w+|haz caso omiso|esque\w+|desconsider\w+|dimentic\w+|non tenere conto)"
    r"\b[^.\n]{0,40}\b(?:anterior\w*|instruc\w+|instruç\w+|reglas?|regras?|tod[oa]s?|precedent\w*"
    r"|istruzion\w*|regole|tutt[eoi])\b",
    r"\b(?:negeer|vergeet)\b[^.\n]{0,40}\b(?:vorige|eerdere|bovenstaande|alle|instructies|regels)\b",
    r"\b(?:zignoruj|ignoruj|zapomnij|pomiń)\w*\b[^.\n]{0,40}"
    r"\b(?:poprzedni\w*|wcześniejsz\w*|powyższ\w*|wszystk\w*|instrukcj\w*|polece\w*|zasad\w*)\b",
    r"(?:игнориру\w+|проигнорируй\w*|забудь\w*|не обращай\w* внимания|ігнору\w+|забудь)[^.\n]{0,40}"
    r"(?:предыдущ\w*|прошл\w*|выше\w*|инструкци\w*|правил\w*|вс[её]\b|все\b|попередн\w*|інструкці\w*)",
    r"(?:önceki|tüm|yukar\u0131daki|talimat\w*|kural\w*)[^.\n]{0,40}"
    r"(?:yok say|unut|görmezden gel|dikkate alma)",
    r"(?:bỏ qua|phớt lờ|quên)[^.\n]{0,40}(?:trước|trên|hướng dẫn|chỉ dẫn|tất cả|quy tắc)",
    r"\b(?:abaikan|lupakan)\b[^.\n]{0,40}"
    r"\b(?:sebelum\w*|instruksi|perintah|semua|aturan|di atas)\b",
    r"(?:忽略|忽视|忽視|无视|無視|忘记|忘掉|忘記|不要理会|不要理會|不要遵守|绕过)[^。\n]{0,20}"
    r"(?:之前|以前|以上|上面|先前|前面|所有|一切|指令|指示|规则|規則|提示|要求)",
    r"(?:以前|これまで|今まで|上記|前の|すべて|全て|全部|指示|命令|ルール|プロンプト)[^。\n]{0,20}"
    r"(?:無視|忘れ|従わない)",
    r"(?:이전|앞의|위의|지금까지|모든|지시|명령|규칙|프롬프트)[^.\n]{0,20}(?:무시|잊|따르지)",
    r"(?:ละเว้น|เพิกเฉย|ลืม|ไม่ต้องสนใจ|อย่าสนใจ|ไม่ต้องทำตาม|อย่าทำตาม|มองข้าม)[^\n]{0,40}"
    r"(?:คำสั่ง|คำแนะนำ|ก่อนหน้า|ทั้งหมด|ข้างต้น|กฎ)",
    r"(?:تجاهل|تجاهلي|تجاهلوا|انس|انسَ|انسى|تجاوز|لا تتبع)[^.\n]{0,40}"
    r"(?:السابق\w*|التعليمات|تعليمات|جميع|كل|أعلاه|القواعد|الأوامر)",
    r"(?:התעלם|התעלמי|התעלמו|שכח|שכחי)[^.\n]{0,40}(?:הקוד\w*|הוראות|ההוראות|כל|הכללים|לעיל)",
    r"(?:पिछल\S*|सभी|ऊपर\S*|पहले|निर्देश\S*|नियम\S*)[^।\n]{0,40}"
    r"(?:अनदेखा|अनदेखी|नज़रअंदाज़|नजरअंदाज|भूल|उपेक्षा)",
)
_ORDER = re.compile("|".join(f"(?:{order})" for order in _ORDERS), re.IGNORECASE)

_EVERYWHERE = (
    (CHAT_TOKEN, "a chat token"),
    (_ROLE, "a role"),
    (_LINK, "a link"),
    (_HTML, "HTML"),
    (re.compile(r"[\w.+-]+@[\w-]+\.\w"), "a mail address"),
    (_ORDER, "an order to ignore something"),
    (_ACCOUNT, "an account number"),
)
_IN_INSTRUCTIONS = (
    (
        re.compile(r"</?instruction>|\bdata-[0-9a-z]{6,}|\\u[0-9a-f]{4}|\"verdict\":", re.I),
        "a mark of the request",
    ),
    (
        re.compile(rf"[A-Za-z0-9+/_-]{{48,}}|{_MORE_DIGITS}{{8,}}"),
        "a code or a long number",
    ),
)
# Shorter numbers too: in what a user wrote they are telephones, cards, orders.
_IN_DEMONSTRATIONS = (
    (
        re.compile(rf"[A-Za-z0-9+/_-]{{48,}}|{_MORE_DIGITS}{{6,}}"),
        "a code or a long number",
    ),
)


def in_instruction(text: str) -> Iterator[tuple[str, str]]:
    """What is suspicious in an instruction: the passage and its name."""
    return _found(plain(text), (*_EVERYWHERE, *_IN_INSTRUCTIONS))


def in_demonstration(text: str) -> Iterator[tuple[str, str]]:
    """What is suspicious in a user's input or an answer to it. Dates are no long numbers."""
    return _found(_DATE.sub(" ", plain(text)), (*_EVERYWHERE, *_IN_DEMONSTRATIONS))


def plain(text: str) -> str:
    """Without look-alikes of letters, and without characters that hide a word by parting it."""
    folded = unicodedata.normalize("NFKC", text)
    return "".join(c for c in folded if unicodedata.category(c) != "Cf")


def hidden_character(text: str) -> str:
    """The first character that no reader sees and no script needs; empty when there is none."""
    return next((c for c in text if c not in _NEEDED and hides(c)), "")


def hides(character: str) -> bool:
    """Whether no reader sees it, line ends included."""
    return unicodedata.category(character) in _INVISIBLE


# Line ends, and the joiners of Persian, of Indian scripts and of emoji.
_NEEDED = frozenset("\n\t\r\u200c\u200d")
# Control, format, surrogate, private, unassigned; line and paragraph separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _found(
    text: str, patterns: tuple[tuple[re.Pattern[str], str], ...]
) -> Iterator[tuple[str, str]]:
    for pattern, name in patterns:
        for found in pattern.finditer(text):
            yield found[0], name
