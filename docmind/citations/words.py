"""English word lists the matcher leans on: stop words, negations, opposites, irregular verbs, number words.

Owns no logic. Stems are Snowball's; a word that Snowball cannot bring home ("fell", "won") is mapped by hand.
"""


from __future__ import annotations

# Words that carry no content of their own. Negations and opposites are missing on purpose: they have gates.
STOP_WORDS = frozenset(
    """a about actually again all also although am among an and another any anyone anything are around as at be became
    because become becomes been being both but by came can come could did do does doing done during each either
    else etc even ever every for from further gave get gets give given gives giving go goes going got had has
    have having he hence her here hers herself him himself his how however i if in indeed instead into is it its
    itself just let like made make makes making many may me might mine moreover much must my myself namely now
    of off often on once only onto or other others otherwise our ours ourselves out own per perhaps quite rather
    really s same shall she should since so some someone something somewhat still such t take taken takes than
    that the their theirs them themselves then there therefore these they this those though through thus to
    together too toward towards try upon us use used uses using usually various very via was we well were what
    whatever when where whereas wherever whether which while who whoever whom whose why will with within would
    yes yet you your yours yourself""".split()
)

# Words a model adds around a fact ("The evidence states that the total amount was ..."): never needed in the quote.
LIGHT_WORDS = frozenset(
    """according additionally amount answer approximately based call called cite cited context contain contained
    contains currently describe described describes detail document documents evidence excerpt exact exactly
    explain explained explains explicitly fact figure finally following furthermore include included includes
    including indicate indicated indicates information item know known locate located mention mentioned mentions
    name named note noted notes number overall page passage provide provided provides question record recorded
    records refer referred refers regarding register registered registers related report reported reports
    respectively respond response result say says said section show showed shown shows source sources
    specifically specified state stated states summary text total totaled totaling totalled value""".split()
)

NEGATIONS = frozenset(
    """not no never none nor neither nobody nothing nowhere without cannot cant fail fails failed failing lack lacks
    lacked lacking unable hardly barely scarcely rarely seldom refuse refuses refused non nicht kein keine
    keinen keiner niemals jamais aucun aucune pas nunca niet geen nooit""".split()
)
# "not only A but also B" affirms A.
AFFIRMING_AFTER_NOT = frozenset("only just merely simply".split())

# What stands under one of these is not stated as a fact.
HEDGES = frozenset(
    """may might could possibly perhaps probably potentially allegedly reportedly supposedly expect expects expected
    anticipate anticipates anticipated if unless""".split()
)

# Each line holds two sides that exclude each other; the words of one side may stand for one another.
_OPPOSITES = """
increase rise rose risen grow grew grown growth climb gain soar | decrease fall fell decline drop reduce shrink loss
up upward | down downward
higher high highest greater larger more above over exceed | lower low lowest smaller less fewer below under
largest biggest most greatest maximum | smallest least minimum fewest
before prior earlier preceding preceded | after later following followed subsequent
win won victory | lose lost loss
gain profit surplus | loss deficit
buy bought purchase acquire acquired acquisition | sell sold sale divest divested
accept approve approved | reject rejected defeat defeated decline
allow permit legal | forbid forbade forbidden prohibit ban banned illegal
include included including | exclude excluded excluding except
begin began begun start started | end ended finish finished stop stopped
open opened | close closed
first | last
north northern | south southern
east eastern | west western
left | right
true | false
male man men | female woman women
positive favorable | negative unfavorable
best better | worst worse
always | never
import | export
strong stronger strongest | weak weaker weakest
early earliest | late latest
old older oldest | young younger new newer youngest newest
large big | small little
long longer longest | short shorter shortest
hot hotter warm warmer | cold colder cool cooler
success successful succeed succeeded | failure unsuccessful fail failed
support supported favor favored | oppose opposed against
agree agreed | disagree disagreed
enter entered join joined | leave left exit
inside | outside
upper top | lower bottom
major majority | minor minority
born birth | die died death
alive | dead
many | few
rich wealthy | poor
improve improved improvement | worsen worsened deteriorate deteriorated deterioration
strengthen | weaken
create created | destroy destroyed
include | omit
public | private
direct | indirect
add added | remove removed subtract
fast faster | slow slower
easy easier | hard harder difficult
"""
OPPOSITES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = tuple(
    (tuple(left.split()), tuple(right.split()))
    for left, right in (line.split("|") for line in _OPPOSITES.strip().splitlines())
)

IRREGULAR = {
    past: base
    for base, pasts in (
        line.split(":")
        for line in """begin:began,begun;build:built
        buy:bought;bring:brought;catch:caught;choose:chose,chosen;draw:drew,drawn
        drive:drove,driven;fall:fell,fallen;feel:felt;fight:fought;find:found;fly:flew,flown;forbid:forbade,forbidden
        grow:grew,grown;hold:held;keep:kept;lead:led;leave:left;lose:lost;mean:meant;meet:met;pay:paid;rise:rose,risen
        run:ran;see:saw,seen;seek:sought;sell:sold;send:sent;shrink:shrank,shrunk;sing:sang,sung;speak:spoke,spoken
        spend:spent;stand:stood;steal:stole,stolen;swim:swam;teach:taught;tell:told;think:thought;throw:threw,thrown
        understand:understood;wear:wore,worn;win:won;write:wrote,written;die:died;woman:women;man:men;child:children
        sink:sank,sunk;strike:struck;break:broke,broken;eat:ate,eaten;forget:forgot;hear:heard;become:became
        person:people;country:countries;january:jan;february:feb;august:aug;september:sept,sep;october:oct
        november:nov;december:dec""".replace("\n", ";").split(";")
    )
    for past in pasts.strip().split(",")
}
IRREGULAR = {past: base.strip() for past, base in IRREGULAR.items()}

NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
        seventeen
    eighteen nineteen twenty""".split()
    )
} | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
ORDINAL_WORDS = {
    word: value
    for value, word in enumerate(
        "second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split(), start=2
    )
} | {"first": 1}
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
SCALE_SUFFIXES = {"k": 3, "m": 6, "mn": 6, "mm": 6, "b": 9, "bn": 9, "tn": 12}
# Units written against the digits: "5km" is the number 5, "777X" is a name.
UNIT_SUFFIXES = frozenset(
    "m km cm mm kg g mg lb lbs ft in mi mph kb mb gb tb hz khz mhz ghz w kw mw gw c f am pm x".split()
)

# A paragraph's subject goes on under these; a name then need not stand in the quoted sentence itself.
PRONOUNS = frozenset("he she it they his her its their we our him them this these".split())
SUBJECT_NOUNS = frozenset(
    "company group firm corporation team club school university city country film album church".split()
)

# A table prints an outflow in parentheses where a sentence says "a loss of 5".
OUTFLOW = frozenset(
    """loss lost lose expense cost charge decrease decline outflow spent spend paid payment payments purchase purchases
    used provision tax taxes negative repayment dividends reduction fell dropped deficit down expenditure
    expenditures""".split()
)

# After these the sentence goes on; those in the second set may also end one.
TITLES = frozenset(
    """mr mrs ms dr prof rev hon gen col lt capt sgt sen rep gov pres st mt ft fig figs eq nos vol pp p ch sec art
    vs cf e.g i.e eg ie al approx ca dept est tel ext min max mssrs messrs""".split()
)
ABBREVIATIONS = frozenset(
    """inc corp co ltd llc plc bros jr sr etc u.s u.k u.n e.u d.c a.m p.m b.c a.d ph.d u.s.a jan feb mar apr jun jul
    aug sep sept oct nov dec mon tue wed thu fri sat sun ave blvd rd n.a n.v s.a mass calif""".split()
)
SENTENCE_STARTERS = frozenset(
    """the a an in on at he she it they we this that these those but and however although after before when while as
    for its his her their our there by with from since during if you i our total net each all some
    many most one""".split()
)
