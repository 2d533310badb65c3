"""From landed files to tokenised, shuffled, packed shards with a manifest (I5, I6).

Importing this package loads neither pyarrow nor Ray, so that the command line starts fast. The
ingest itself needs both: import `ingest_corpus` from `perennial.corpora.ingest.pipeline` where it
is called.
"""

from perennial.corpora.compatibility import check_same_run
from perennial.corpora.file_list import ListRecord, decode_list, escape_text, is_hidden
from perennial.corpora.formats.open import find_companions, find_kind
from perennial.corpora.growth.stored import (
    extend_for,
    find_tokenizer,
    grow_tokenizer,
    grown_folder,
    read_growth,
    withdraw_growth,
)
from perennial.corpora.holdout import HeldOutDocument, read_holdout
from perennial.corpora.inbox import (
    LandedCorpus,
    check_landed,
    check_name,
    list_landed,
    read_landed,
    record_list,
)
from perennial.corpora.landing import check_files, land, land_files
from perennial.corpora.manifest import CorpusManifest, IngestSettings, fit_warning, read_manifest
from perennial.corpora.reuse import borrow_tokenizer
from perennial.corpora.tokenizer import (
    RunTokenizer,
    find_converted,
    import_tokenizer,
    load_tokenizer,
    read_base_files,
    read_tokenizer,
    withdraw_tokenizer,
)
from perennial.corpora.tokenizer_training import train_tokenizer

__all__ = [
    "CorpusManifest",
    "HeldOutDocument",
    "IngestSettings",
    "LandedCorpus",
    "ListRecord",
    "RunTokenizer",
    "borrow_tokenizer",
    "check_files",
    "check_landed",
    "check_name",
    "check_same_run",
    "decode_list",
    "escape_text",
    "extend_for",
    "find_companions",
    "find_converted",
    "find_kind",
    "find_tokenizer",
    "fit_warning",
    "grow_tokenizer",
    "grown_folder",
    "import_tokenizer",
    "is_hidden",
    "land",
    "land_files",
    "list_landed",
    "load_tokenizer",
    "read_base_files",
    "read_growth",
    "read_holdout",
    "read_landed",
    "read_manifest",
    "read_tokenizer",
    "record_list",
    "train_tokenizer",
    "withdraw_growth",
    "withdraw_tokenizer",
]
