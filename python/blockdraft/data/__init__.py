"""The tiny byte-level ZAYA that ships with the package, and what it was trained on."""

from pathlib import Path

BYTE_EOS, BYTE_MASK, BYTE_VOCAB = 256, 257, 264  # ids 0..255 are bytes; 258.. pad the vocabulary

# standard-library modules that `train` never trains on
HELD_OUT = frozenset(
    {
        "textwrap.py",
        "fractions.py",
        "statistics.py",
        "queue.py",
        "calendar.py",
        "shelve.py",
        "bisect.py",
    }
)

TINY = Path(__file__).with_name("tiny-zaya")
