"""Captions as words: the tokenizer, its inverse for people, and the vocabulary.

One tokenizer serves training and metrics, so that the words the model learns are the words it is
scored on. It follows the Penn Treebank tokenization of the official coco-caption evaluation
(Stanford PTBTokenizer 3.4.1, lower-cased, its punctuation list removed), written as one regular
expression instead of a Java program. Only the standard library is imported.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from captioner.errors import DataError

__all__ = ["Vocabulary", "detokenize", "tokenize"]

# Letters of all scripts with their combining marks: Python's \w lacks the marks, and would break
# Devanagari or Thai words at every vowel sign. Blocks of letters, minus their punctuation.
_LETTERS = (
    r"A-Za-zªµºÀ-ÖØ-öø-\u0588\u0591-\u05f2\u0610-\u061a\u0620-\u0669\u066e-\u06d3\u06d5-\u0963"
    r"\u0966-\u0e4e\u0e50-\u1fff\u200c\u200d\u2010\u2011\u2c00-\u2dff\u3005-\u3007\u3040-\u30fa"
    r"\u30fc-\ud7ff\uf900-\ufd3d\ufd50-\ufdff\ufe70-\ufefc\uff21-\uff3a\uff41-\uff5a\uff66-\uff9f"
    r"\U00010000-\U0001efff\U00020000-\U0003ffff"
)
# Scripts written without spaces: Chinese and Japanese (Hangul has spaces and is left alone).
_CJK = r"[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"

# What is rewritten before matching: typographic characters, to their plain forms or to a space.
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("‘’‛", "'"),
        **dict.fromkeys(
            "“”„‟«»‹›「」『』〈〉《》‒–—―…・。、，．：；！？،؛؟।॥¿¡\u200b\u2028\u2029", " "
        ),
        **dict.fromkeys("（【［", "("),
        **dict.fromkeys("）】］", ")"),
        **dict.fromkeys("\u00ad\ufeff", None),
        **{"¼": " 1/4", "½": " 1/2", "¾": " 3/4"},
    }
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_BRACKET_OF = {token: bracket for bracket, token in _BRACKETS.items()}

# Written as one word, two words to the treebank.
_TWO_WORDS = {
    "cannot": ("can", "not"),
    "gimme": ("gim", "me"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
}

# Abbreviations keep their full stop. Some are words too (mass, miss, ill) and need their capital;
# some (no. 5, fig. 2) are abbreviations only before a number.
_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros
    calif capt cf cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens
    esq est etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun
    kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt
    mtg natl neb nev nov oct okla penn pfc ph plc pres prof profs pte pty pvt rd rep reps rev rt sen
    sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu thurs tue tues univ va
    vs vt wed wis wisc wm wyo"""
_CAPITAL_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_NUMBER_ABBREVIATIONS = "art ca fig figs no nos op pp prop"


def _either(words: str) -> str:
    """A regular expression that matches any of the words."""
    return "|".join(words.split())


_L = f"[{_LETTERS}]"  # a letter
_W = f"[{_LETTERS}0-9]"  # a letter or digit
_END = f"(?!{_W})"  # no letter or digit follows
_CLITIC = f"(?i:s|m|d|ll|re|ve){_END}"
_STOP = r"(?:\.(?=[,;:]))?"  # a full stop right before a comma belongs to the word, as in "st.,"

_TOKEN = re.compile(
    rf"""
    # most words: this alternative is only for speed
    [A-Za-z]+(?=\s|\Z)
    # clitics, and 't|is
  | (?i:n't){_END} | '{_CLITIC} | '[tT](?=(?i:is|was){_END})
    # words with an apostrophe of their own: 'n', 'em, '80s, y'|all, o'clock, o'brien, ma'am
  | (?i: 'n' | '(?:n|em|till?|cause|[2-9]0s){_END} | y'(?={_L})
       | (?:dunkin|somethin|ol)'{_END} | (?:c'mon|s'mores|li'l|ev'ry|nor'easter){_END} )
  | [dloDLO]'(?!{_CLITIC}){_L}+ | [A-HJ-XZn]'(?!{_CLITIC}){_L}{{2,}} | [djlDJL]'(?={_L})
  | {_L}+[aeiouyAEIOUY]'(?!{_CLITIC})[aeiouA-Z]{_L}*
    # compounds: his/her, 1/2, close-up, 1,000-year-old, U.S.-made
  | (?:\d+-)?{_W}+(?:-{_L}+){{0,2}}(?:/{_W}+(?:-{_L}+){{0,2}}){{1,2}}
  | {_W}[{_LETTERS}0-9.,]{{0,60}}(?:-{_W}+)+{_STOP}
    # initials and abbreviations (a lone letter at the end of the caption has no stop of its own)
  | (?:[A-Za-z]\.){{2,}}(?!{_L}) | [A-Za-z]\.(?!{_L}|\s*\Z)
  | (?i:{_either(_ABBREVIATIONS)})\.(?!{_L})
  | (?:{_either(_CAPITAL_ABBREVIATIONS + " " + _CAPITAL_ABBREVIATIONS.upper())})\.(?!{_L})
  | (?i:{_either(_NUMBER_ABBREVIATIONS)})\.(?=\s?\d)
  | [A-Z]+&[A-Z]
    # numbers: 3:25, 1,000.50, -5; words: 3rd, 4x4, dog; a stop or mark between letters stays
  | [-+]?\d*(?:[.:,]\d+)+{_STOP} | [-+]?\d+{_END}{_STOP} | {_L}{_W}*(?:[.!?]{_L}{_W}*)*{_STOP}
  | {_W}+{_STOP}
    # symbols; what nothing matches (. , : ; ' " ` - and a single ! or ?) is dropped
  | \$ | \#{_L}+ | \#+ | \*+ | _+ | [!?]{{2,}}
  | [^\s{_LETTERS}0-9.,:;!?'"`\-_\u200e\u200f\ufe00-\ufe0f\U0001f000-\U0001ffff]
    """,
    re.VERBOSE,
)
_NEGATION = re.compile(f"(?<={_L})(?=n't{_END})", re.IGNORECASE)
_CJK_CHARACTER = re.compile(f"({_CJK})")


def tokenize(caption: str) -> list[str]:
    """Split a caption into lower-case Penn Treebank words without punctuation.

    The rules, which are those of the official coco-caption evaluation:

    - Quotation marks and `. , : ; ? ! - -- ...` are dropped; brackets become `-lrb- -rrb-` and
      stay; other symbols (`$ # & %`) are words; runs such as `!!` stay.
    - `n't 's 're 've 'll 'd 'm` are split off; `cannot`, `gonna` and the like are two words.
    - Compounds (`close-up`, `his/her`), numbers (`2.5`, `1,000`), times (`3:25`) and
      abbreviations with their stop (`u.s.`, `st.`) stay whole.

    Beyond English: text is normalised to Unicode NFC, accents are kept, and each Chinese or
    Japanese character is a word of its own, as these scripts do not mark words (the official tool
    makes one word of the whole run). Other differences, all rare: currency signs are kept (there
    they become `$`), and markup, e-mail addresses and smileys are not recognised.

    Args:
        caption: any text; line breaks count as spaces.

    Returns:
        The words, none of them empty or with white space; `[]` if there are none.
    """
    text = caption
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_PLAIN)
        text = _CJK_CHARACTER.sub(r" \1 ", text)
    if "n't" in text or "N'T" in text:
        text = _NEGATION.sub(" ", text)
    words = [_BRACKETS.get(word) or word.lower() for word in _TOKEN.findall(text)]
    if not _TWO_WORDS.keys().isdisjoint(words):
        words = [part for word in words for part in _TWO_WORDS.get(word, (word,))]
    return words


# What has no space before it, or none after it, when people read it.
_JOINS_LEFT = frozenset(
    ["n't", "'s", "'re", "'ve", "'ll", "'d", "'m", "-rrb-", "-rsb-", "-rcb-", "%"]
)
_JOINS_RIGHT = frozenset(["y'", "'t", "d'", "j'", "l'", "-lrb-", "-lsb-", "-lcb-", "$", "#"])
_ONE_WORD = {halves: word for word, halves in _TWO_WORDS.items() if word != "cannot"}


def detokenize(words: Sequence[str]) -> str:
    """Join the words of a caption into a sentence for people to read.

    Clitics go back to their words (`ca n't` to `can't`, `dog 's` to `dog's`), brackets
    become brackets again, `$ 5` and `50 %` close up, Chinese and Japanese characters are set
    without spaces. Case and the dropped punctuation are not invented: tokenizing the sentence
    gives the same words again, as far as their full stops can be told from its end.

    Args:
        words: tokens of `tokenize` or of `Vocabulary.decode`.

    Returns:
        One line of text; `""` for no words.
    """
    text = ""
    previous = ""
    for word in words:
        joined = (
            not previous
            or word in _JOINS_LEFT
            or previous in _JOINS_RIGHT
            or (previous, word) in _ONE_WORD
            or bool(_CJK_CHARACTER.fullmatch(previous) and _CJK_CHARACTER.fullmatch(word))
        )
        text += ("" if joined else " ") + _BRACKET_OF.get(word, word)
        previous = word
    return text


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """The words a model knows, and their numbers; immutable.

    Ids 0 to 3 are the specials `<pad>`, `<start>`, `<end>` and `<unk>`, then come the
    words. The specials are not words: a caption that contains the text `<end>` cannot end a
    training sequence, it is unknown like any other word outside the vocabulary.

    Attributes:
        words: all entries by id, the specials included.

    Raises:
        DataError: if `words` is not the four specials and then distinct, non-empty words
            without white space.
    """

    PAD: ClassVar[int] = 0
    START: ClassVar[int] = 1
    END: ClassVar[int] = 2
    UNK: ClassVar[int] = 3
    SPECIALS: ClassVar[tuple[str, ...]] = ("<pad>", "<start>", "<end>", "<unk>")

    words: tuple[str, ...]
    _ids: dict[str, int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        n = len(self.SPECIALS)
        object.__setattr__(self, "words", tuple(self.words))
        if self.words[:n] != self.SPECIALS:
            raise DataError(
                f"a vocabulary must begin with {' '.join(self.SPECIALS)}; "
                f"this one begins with {self.words[:n]!r}"
            )
        for index, word in enumerate(self.words):
            if not isinstance(word, str) or word.split() != [word]:
                raise DataError(
                    f"entry {index} of the vocabulary is {word!r}: it must be text without spaces"
                )
        ids = {word: index for index, word in enumerate(self.words)}
        if len(ids) < len(self.words):
            word, count = Counter(self.words).most_common(1)[0]
            raise DataError(f"{word!r} is {count} times in the vocabulary: remove the repetitions")
        for special in self.SPECIALS:
            del ids[special]
        object.__setattr__(self, "_ids", ids)

    @classmethod
    def build(
        cls,
        captions: Iterable[Sequence[str]],
        min_count: int = 5,
        max_size: int | None = None,
    ) -> "Vocabulary":
        """Count the words of tokenized captions and keep the frequent ones.

        The order is by falling count, then alphabetical, so that equal captions in any order give
        equal vocabularies.

        Args:
            captions: tokenized captions.
            min_count: the least number of occurrences a word needs.
            max_size: the most words to keep, specials not counted; None for no limit.
        """
        counts = Counter(word for caption in captions for word in caption)
        for special in cls.SPECIALS:
            counts.pop(special, None)
        words = sorted((w for w in counts if counts[w] >= min_count), key=lambda w: (-counts[w], w))
        return cls((*cls.SPECIALS, *words[:max_size]))

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        """Return whether `word` has an id of its own; False for the specials."""
        return word in self._ids

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} entries)"

    def encode(self, words: Sequence[str]) -> list[int]:
        """Return the ids of the words, without START and END; UNK for unknown words."""
        return [self._ids.get(word, self.UNK) for word in words]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Return the words of the ids up to the first END, without PAD and START.

        Raises:
            DataError: for an id that is no entry of the vocabulary.
        """
        words: list[str] = []
        for number in map(int, ids):
            if number == self.END:
                break
            if not 0 <= number < len(self.words):
                raise DataError(
                    f"word id {number} is outside the vocabulary (0 to {len(self.words) - 1})"
                )
            if number not in (self.PAD, self.START):
                words.append(self.words[number])
        return words

    def to_list(self) -> list[str]:
        """Return all entries by id, for the header of a checkpoint."""
        return list(self.words)

    @classmethod
    def from_list(cls, words: Sequence[str]) -> "Vocabulary":
        """Return the vocabulary that `to_list` wrote.

        Raises:
            DataError: if the entries are not those of a vocabulary.
        """
        if isinstance(words, str):
            raise DataError("a vocabulary must be a list of words, not one text")
        return cls(tuple(words))
