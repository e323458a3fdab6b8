"""Speech in the layout of LibriSpeech: by the synthesiser espeak-ng where it is installed, else speech-like sounds.

In the latter every letter is a steady sound of its own. Either way there are a few voices, one for each speaker. Sounds of a
given speed are the same whatever is installed.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy import signal

from algoperf_torch.errors import DataError, UsageError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.librispeech.features import SAMPLE_RATE
from algoperf_torch.workloads.librispeech.prepare import MAX_CHARACTERS, ROOT, SUBSETS

DEFAULT_EXAMPLES = 192
CHAPTER = 8  # utterances
LETTER_MS = 70
SETTINGS = {"words": int, "letter_ms": int}
LOUDNESS = 3_000  # peak, of the 32,767 that 16 bits hold

_SUBJECTS = ["THE OLD MAN", "A YOUNG GIRL", "MY FATHER", "THE CAPTAIN", "NO ONE", "HER SISTER", "THE DOG", "A STRANGER"]
_VERBS = ["SAW", "TOOK", "FOUND", "LEFT", "LOVED", "BROKE", "SOLD", "DIDN'T KNOW"]
_OBJECTS = [
    "THE HOUSE",
    "A BOAT",
    "HIS BOOK",
    "THE RIVER",
    "SOME BREAD",
    "THEIR HORSE",
    "A LONG LETTER",
    "THE KING'S RING",
]
_ENDINGS = ["", "AT NIGHT", "IN THE WOODS", "WITHOUT A WORD", "ONCE MORE", "LAST YEAR"]
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WORDS = sorted({word for part in (_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS) for text in part for word in text.split()})


def synthesise(
    folder: Path, *, num_train: int, seed: int, words: int | None = None, letter_ms: int | None = None
) -> dict[str, int]:
    """Writes all subsets and returns the number of utterances by split that preparation keeps.

    The first training subset has one utterance more, whose transcript is too long to be kept.

    Args:
        words: utterances of one to three out of so many words, instead of sentences.
        letter_ms: length of a letter in milliseconds, about; given, speech-like sounds are made also where espeak-ng is.

    Raises `UsageError` for settings that cannot be.
    """
    if words is not None and not 1 <= words <= len(_WORDS):
        raise UsageError(f"There are 1 to {len(_WORDS)} words to say, not {words}.")
    if letter_ms is not None and letter_ms < 5:
        raise UsageError(f"A letter of {letter_ms} ms is too short; write letter_ms=5 or more.")
    program = shutil.which("espeak-ng") if letter_ms is None else None
    random = np.random.Generator(np.random.Philox(key=seed))
    num_other = max(2, num_train // 8)
    counts: dict[str, int] = {Split.TRAIN: num_train, Split.VALIDATION: num_other, Split.TEST: num_other}
    speaker = 100
    for split, subsets in SUBSETS.items():
        for position, subset in enumerate(subsets):
            share = (counts[split] + len(subsets) - 1 - position) // len(subsets)
            for start in range(0, share, CHAPTER):
                speaker += 1
                texts = [transcript(random, words) for _ in range(min(CHAPTER, share - start))]
                if subset == SUBSETS[Split.TRAIN][0] and start == 0:
                    texts.append(" ".join(sentence(random) for _ in range(MAX_CHARACTERS // 10)))
                write_chapter(folder / ROOT / subset, speaker, texts, random, program, letter_ms or LETTER_MS)
    return counts


def transcript(random: np.random.Generator, words: int | None) -> str:
    """A sentence, or one to three out of `words` words."""
    if words is None:
        return sentence(random)
    chosen = random.choice(_WORDS[:: max(1, len(_WORDS) // words)][:words], size=random.integers(1, 4))
    return " ".join(map(str, chosen))


def sentence(random: np.random.Generator) -> str:
    """A sentence of four to eleven words; any of 3,072."""
    words = [str(random.choice(part)) for part in (_SUBJECTS, _VERBS, _OBJECTS, _ENDINGS)]
    return " ".join(words).strip()


class Voice(NamedTuple):
    """Of one speaker: pitch of the voice in Hz, and a factor on all resonances, the speaker's size."""

    pitch: float
    tract: float


def write_chapter(
    subset: Path, speaker: int, texts: list[str], random: np.random.Generator, program: str | None, letter_ms: int
) -> None:
    """Speech by `program`, or sounds where it is None, and the transcript."""
    chapter = subset / str(speaker) / str(1000 + speaker)
    chapter.mkdir(parents=True)
    voice = Voice(pitch=random.uniform(90, 220), tract=random.uniform(0.9, 1.1))
    lines = []
    for number, text in enumerate(texts):
        name = f"{speaker}-{1000 + speaker}-{number:04d}"
        samples = speak(text, voice, random, letter_ms) if program is None else speak_with(program, text, voice)
        soundfile.write(chapter / f"{name}.flac", samples, SAMPLE_RATE, subtype="PCM_16")
        lines.append(f"{name} {text}\n")
    (chapter / f"{speaker}-{1000 + speaker}.trans.txt").write_text("".join(lines), encoding="utf-8")


def speak_with(program: str, text: str, voice: Voice) -> NDArray[np.int16]:
    """int16 samples of a text as espeak-ng reads it. Raises `DataError` where it fails."""
    sex = "f" if voice.pitch > 155 else "m"
    options = ["-v", f"en-us+{sex}{1 + int(20 * (voice.tract - 0.9))}", "-p", f"{99 * (voice.pitch - 90) / 130:.0f}"]
    done = subprocess.run([program, *options, "-s", "170", "--stdout", text], capture_output=True, check=False)
    try:
        samples, rate = soundfile.read(io.BytesIO(done.stdout))
    except soundfile.LibsndfileError as error:
        reason = done.stderr.decode(errors="replace").strip() or error
        raise DataError(f"{program} did not say {text!r}: {reason}.") from error
    resampled = signal.resample_poly(samples, SAMPLE_RATE, rate)
    return np.round(resampled * (LOUDNESS / max(float(np.abs(resampled).max()), 1e-9))).astype(np.int16)


def speak(text: str, voice: Voice, random: np.random.Generator, letter_ms: int = LETTER_MS) -> NDArray[np.int16]:
    """int16 samples: a buzz (or hiss, for every fourth letter) through two resonances that name the letter."""
    pieces = []
    for letter in f" {text} ":
        length = int(SAMPLE_RATE * letter_ms / 1_000 * random.uniform(0.85, 1.15))
        code = _ALPHABET.find(letter)
        if code < 0:
            pieces.append(np.zeros(length))
            continue
        time = np.arange(length) / SAMPLE_RATE
        buzz = signal.sawtooth(2 * np.pi * voice.pitch * (1 + 0.05 * np.sin(9 * time)) * time)
        source = random.normal(size=length) if code % 4 == 3 else buzz
        sound = source
        for resonance in (300 + 110 * (code % 7), 1_200 + 420 * (code // 7) + 60 * (code % 7)):
            sound = signal.lfilter(*signal.iirpeak(resonance * voice.tract, 6, fs=SAMPLE_RATE), sound) + 0.02 * sound
        pieces.append(sound / np.abs(sound).max() * np.hanning(length) ** 0.5)
    noisy = np.concatenate(pieces) * LOUDNESS * random.uniform(0.5, 1) + random.normal(size=sum(map(len, pieces))) * 20
    return np.clip(np.round(noisy), -32768, 32767).astype(np.int16)
