"""How the page looks: styles, small scripts and words. Nothing is fetched from elsewhere."""

from __future__ import annotations

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

HEAD = '<div class="lk-brand">llavakit</div>'

EMPTY = """\
<div class="lk-empty">
<h2>Ask about a picture</h2>
<p>Drop, paste or add pictures or a PDF below, and write a question. Or begin with an example.</p>
</div>
"""


def foot(logged: bool) -> str:
    """The line at the bottom: what a visitor should know."""
    kept = (
        "Whoever runs this page keeps what is asked here, with its pictures."
        if logged
        else "Nothing of this is kept."
    )
    return f'<div class="lk-foot">Models make mistakes; check what matters. {kept}</div>'


TOGGLE_DARK = "() => { document.body.classList.toggle('dark'); }"

_KEY = "llavakit-visit"
FIND_TOKEN = f"() => sessionStorage.getItem('{_KEY}') || ''"
KEEP_TOKEN = f"(token) => {{ if (token) sessionStorage.setItem('{_KEY}', token); }}"

SCRIPT = """
<script>
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape') return;
  const stop = document.querySelector('#lk-box .stop-button');
  if (stop) stop.click();
});
</script>
"""

STYLE = """
.gradio-container { max-width: 60rem !important; margin: 0 auto !important; }
#lk-top { align-items: center; flex-wrap: nowrap; gap: .4rem; }
#lk-top button { flex: 0 0 auto; }
#lk-name { flex: 1 1 auto; padding: 0; }
.lk-brand { font-size: 1.15rem; font-weight: 650; letter-spacing: -.01em; }
#lk-tasks { flex-wrap: nowrap; overflow-x: auto; gap: .4rem; scrollbar-width: none; }
#lk-tasks button { flex: 0 0 auto; white-space: nowrap; }
.lk-foot { font-size: .75rem; text-align: center; color: var(--body-text-color-subdued); }
.lk-empty { text-align: center; color: var(--body-text-color-subdued); }
.lk-empty h2 { color: var(--body-text-color); }
.lk-pictures { display: flex; flex-wrap: wrap; gap: .4rem; }
.lk-pictures img { max-height: 11rem; max-width: 100%; width: auto; border-radius: .5rem;
  margin: 0; object-fit: contain; background: var(--background-fill-primary); }
.lk-facts, .lk-note { font-size: .75rem; color: var(--body-text-color-subdued); }
.lk-status { color: var(--body-text-color-subdued); animation: lk-breathe 1.6s infinite; }
.lk-error { border-left: 3px solid var(--error-border-color, #c33); padding-left: .6rem; }
@keyframes lk-breathe { 50% { opacity: .45; } }
@media (prefers-reduced-motion: reduce) { .lk-status { animation: none; } }
"""
