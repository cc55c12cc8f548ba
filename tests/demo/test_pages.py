import random

from examples.demo_model.world.pages import (
    CHARACTERS,
    COLUMNS,
    NAMES,
    TITLES,
    Page,
    clean_page,
    draw_page,
    random_page,
    write_pdf,
)


def test_equal_generators_give_equal_pages():
    one, other = random_page(random.Random(5)), random_page(random.Random(5))
    assert one == other
    assert draw_page(one).tobytes() == draw_page(other).tobytes()


def test_text_is_what_is_printed_line_by_line():
    page = Page("INVOICE", 4711, 372, name="ANNA", page=3)
    assert page.text() == "INVOICE\nNo. 4711\nTotal 372\nName ANNA\nPage 3"


def test_every_line_fits_on_the_page():
    for title in TITLES:
        page = Page(title, 99999, 9999, name=max(NAMES, key=len), page=99)
        assert all(first + len(text) < COLUMNS for _, first, text in page.lines())


def test_every_character_has_a_class():
    rng = random.Random(2)
    printed = "".join(random_page(rng).text() for _ in range(200))
    assert set(printed) - {" ", "\n"} <= set(CHARACTERS)


def test_a_clean_page_keeps_the_content():
    page = random_page(random.Random(3))
    clean = clean_page(page)
    assert clean.text() == page.text()
    assert draw_page(clean).getpixel((0, 0)) == (255, 255, 255)


def test_a_pdf_has_a_page_for_every_page(tmp_path):
    rng = random.Random(4)
    path = tmp_path / "pages.pdf"
    write_pdf([clean_page(random_page(rng)) for _ in range(3)], path)
    data = path.read_bytes()
    assert data.startswith(b"%PDF") and b"/Count 3" in data
