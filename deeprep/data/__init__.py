"""The data sets a run can use, by name: one registry.

All of them fit in memory and become one tensor: no worker processes, no copies per epoch. Only
training splits are read, since that is what the paper measures. Sentences come from your own files
(`text.py`).
"""

from deeprep.data.documents import Documents, TokenBlocks, load_documents
from deeprep.data.registry import load_configured_data, load_data
from deeprep.data.settings import DatasetName, DataSettings
from deeprep.data.synthetic import orthogonal
from deeprep.data.tensors import Batches, Data
from deeprep.data.text import TextBatches, TextData, load_text
from deeprep.data.tokenizers import ByteTokenizer, WordTokenizer

__all__ = [
    "Batches",
    "ByteTokenizer",
    "Data",
    "DataSettings",
    "DatasetName",
    "Documents",
    "TextBatches",
    "TextData",
    "TokenBlocks",
    "WordTokenizer",
    "load_configured_data",
    "load_data",
    "load_documents",
    "load_text",
    "orthogonal",
]
