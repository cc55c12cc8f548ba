"""Maps of where a model looked: the words of a question over the page that they found."""

import numpy as np
import pytest
from PIL import Image

from llavakit.embeddings import Embedding
from llavakit.errors import ParameterError
from llavakit.images import open_picture
from llavakit.retrieval import SimilarityMap
from tests.retrieval.colours import ColourEmbedder
from tests.retrieval.documents import picture
from tests.retrieval.test_index import opened


@pytest.fixture
def hit(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    picture(folder / "a.png", "white", "red", size=(240, 120))  # red at the lower right
    with opened(tmp_path / "index") as index:
        index.update(folder)
        yield index.search("where is red?", 1)[0]


def warmth(image, x, y):
    """How much warmer than the page a place is drawn: red against blue."""
    width, height = image.size
    red, _, blue = image.getpixel((int(x * width), int(y * height)))
    return red - blue


def test_the_place_that_a_word_names_is_the_warmest(hit):
    drawn = hit.heatmap("red")
    assert (drawn.size, drawn.mode) == ((240, 120), "RGB")
    assert warmth(drawn, 0.75, 0.75) > 100
    assert all(warmth(drawn, x, y) < 0 for x, y in [(0.2, 0.2), (0.2, 0.8), (0.8, 0.2)])
    (left, top, right, bottom), *_ = hit.similarity().best_places("red")
    assert left >= 0.49 and top >= 0.49 and right <= 1 and bottom <= 1


def test_all_words_together_and_one_by_one(hit):
    seen = hit.similarity()
    assert seen.words == ("where", "is", "red?") and seen.products.shape == (3, 36)
    whole = hit.heatmap()
    assert warmth(whole, 0.75, 0.75) > warmth(whole, 0.2, 0.2)
    assert hit.heatmap("red").tobytes() == hit.heatmap(2).tobytes() == hit.heatmap("RED").tobytes()


def test_a_word_of_several_tokens_is_found():
    picture = open_picture(Image.new("RGB", (8, 8)))
    places = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]], dtype=np.float32)
    products = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], dtype=np.float32)
    seen = SimilarityMap(picture, ("▁the", "▁to", "tal", "?"), products, places)
    assert seen.best_places("total", 1) == [(0.5, 0, 1, 1)]
    assert seen.best_places("the", 1) == [(0, 0, 0.5, 1)]
    for wrong in ("tot", "thetot", "", "sum"):
        with pytest.raises(ParameterError, match="has no word"):
            seen.draw(wrong)
    for wrong in (4, -1):
        with pytest.raises(ParameterError, match="from 0 to 3"):
            seen.draw(wrong)


def test_small_places_are_drawn_over_the_view_of_the_whole_page():
    picture = open_picture(Image.new("RGB", (90, 90), "white"))
    places = np.array([[0, 0, 1, 1], [0, 0, 0.2, 0.2]], dtype=np.float32)
    seen = SimilarityMap(picture, ("a",), np.array([[1, 0]], dtype=np.float32), places)
    drawn = seen.draw()
    assert warmth(drawn, 0.8, 0.8) > 100 and warmth(drawn, 0.08, 0.08) < 0


def test_a_question_that_finds_nothing_anywhere_is_drawn_evenly():
    picture = open_picture(Image.new("RGB", (30, 30), "white"))
    places = np.array([[0, 0, 1, 0.5], [0, 0.5, 1, 1]], dtype=np.float32)
    seen = SimilarityMap(picture, ("a",), np.zeros((1, 2), dtype=np.float32), places)
    assert len(set(seen.draw().get_flattened_data())) == 1


def test_an_embedder_without_places_is_told(hit):
    (page,) = ColourEmbedder().embed(images=[Image.new("RGB", (9, 9))])
    picture = open_picture(Image.new("RGB", (9, 9)))
    with pytest.raises(ParameterError, match="does not say which places"):
        SimilarityMap.of(picture, Embedding(page.vectors), page)
