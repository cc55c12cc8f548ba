"""Embeddings that tell texts apart by their words: no model, and the same in every process."""

import math
import re
from zlib import crc32

from langchain_core.embeddings import Embeddings

SIZE = 256


class WordEmbeddings(Embeddings):
    def embed_query(self, text):
        vector = [0.0] * SIZE
        for word in re.findall(r"\w+", text.lower()):
            vector[crc32(word.encode()) % SIZE] += 1.0
        length = math.hypot(*vector) or 1.0
        return [value / length for value in vector]

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]
