"""How the page looks: styles, small scripts and words. Nothing is fetched from elsewhere."""

from __future__ import annotations

from html import escape
from pathlib import Path

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

DESCRIPTION = "Ask LLaVA models about images and documents."


def head(model: str) -> str:
    """Return the name of the page, and below it the name of the model that answers."""
    name = escape(model)
    return (
        '<h1 class="lk-brand">llavakit</h1>'
        f'<div class="lk-model" role="status" aria-label="Model" title="{name}">{name}</div>'
    )


EMPTY = """\
<div class="lk-empty">
<h2>Ask about an image</h2>
<p>Drop, paste or add images or a PDF below, and write a question. Or begin with an example.</p>
</div>
"""


def foot(logged: bool) -> str:
    """Return the line at the bottom: what a visitor should know."""
    kept = (
        "The operator of this page keeps what is asked here, with its images."
        if logged
        else "Nothing is kept here; your browser keeps your chats."
    )
    return f'<div class="lk-foot">Models make mistakes; check what matters. {kept}</div>'


LOGIN = (
    '<strong role="heading" aria-level="1">llavakit</strong><br>'
    "After several wrong passwords, the next try has to wait: at most a minute."
)

TOGGLE_DARK = "() => { document.body.classList.toggle('dark'); }"
TOGGLE_CHATS = "() => { document.querySelector('#lk-chats .toggle-button').click(); }"
TOGGLE_SETTINGS = "() => { document.querySelector('#lk-settings .toggle-button').click(); }"

_KEY = "llavakit-visit"
FIND_TOKEN = f"() => sessionStorage.getItem('{_KEY}') || ''"
KEEP_TOKEN = f"(token) => {{ if (token) sessionStorage.setItem('{_KEY}', token); }}"

KEEP_CHAT = "() => { window.llavakitChats.keep(); }"

CHATS = """\
<h2>Chats</h2>
<div class="lk-saving">
<button type="button" data-chats="md">Download as Markdown</button>
<button type="button" data-chats="json">Download as JSON</button>
</div>
<h3>Earlier chats</h3>
<label class="lk-keep"><input type="checkbox" data-chats="keep" checked>
Keep chats in this browser</label>
<p class="lk-chats-state" role="status"></p>
<ul class="lk-chat-list" aria-label="Earlier chats"></ul>
<button type="button" data-chats="clear">Delete all earlier chats</button>
"""


def _scripts(*names: str) -> str:
    texts = (Path(__file__).with_name(name).read_text("utf-8") for name in names)
    return "".join(f"<script>\n{text}</script>\n" for text in texts)


SCRIPT = _scripts("page.js", "chats.js", "looking.js")

STYLE = """
.gradio-container, .gradio-container .main, .sidebar-parent, .gradio-container main.contain {
  width: 100% !important; max-width: 100% !important; }
.gradio-container .main { padding: .75rem 1rem .5rem !important; }
.gradio-container main.contain { max-width: 54rem !important; margin: 0 auto !important; }
.gradio-container main.contain > .column { gap: .6rem; }

#lk-top { align-items: center; flex-wrap: nowrap; gap: .4rem; }
#lk-top button { flex: 0 0 auto; }
#lk-name { flex: 1 1 0; min-width: 0 !important; padding: 0; }
.lk-brand { font-size: 1.2rem; font-weight: 650; letter-spacing: -.01em;
  margin: 0; line-height: 1.2; }
.lk-model { font-size: .75rem; color: var(--body-text-color-subdued); overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
#lk-top button, #lk-tasks button { background: transparent; box-shadow: none; padding: .3rem .7rem;
  border: 1px solid var(--border-color-primary); font-weight: 500; }
#lk-top button:hover, #lk-tasks button:hover { background: var(--background-fill-secondary); }
button:focus-visible, a:focus-visible, #lk-box:focus-within {
  outline: 2px solid var(--color-accent); outline-offset: 1px; }

/* The page is as high as the window, and the conversation takes what the rest leaves. */
.gradio-container main.contain > .column { height: calc(100dvh - 1.25rem); flex-wrap: nowrap; }
.gradio-container main.contain > .column > :not(#lk-chat) { flex: 0 0 auto; }
#lk-chat { flex: 1 1 0 !important; height: auto !important; min-height: 8rem !important;
  border-width: 0 !important; background: transparent; }
#lk-chat .bubble-wrap { background: transparent; }
#lk-chat .user { border: none; }
#lk-chat .bot { border: none; background: transparent; box-shadow: none; }
#lk-chat .message-buttons-left, #lk-chat .message-buttons-right { opacity: .85; }
#lk-chat .message-buttons-left:hover, #lk-chat .message-buttons-right:hover,
#lk-chat .message-buttons-left:focus-within, #lk-chat .message-buttons-right:focus-within {
  opacity: 1; }
#lk-chat .bot.message { padding-left: 0; padding-right: 0; }
#lk-chat .user-row:has(.lk-pictures) + .message-buttons-right,
#lk-chat .bot-row:has(.lk-facts, .lk-error, .lk-status) + .message-buttons-left
  :is(button:not([aria-label=Retry]), .extra-feedback),
#lk-chat .bot-row:has(.lk-facts, .lk-error, .lk-status)
  + .message-buttons-left:not(:has([aria-label=Retry])) { display: none; }
#lk-chat .message-row { margin-bottom: .35rem; }
#lk-chat .bot-row:has(.lk-facts) { margin-top: .2rem; margin-bottom: .5rem; }
#lk-chat .user-row .component { background: transparent; padding: 0; }
#lk-chat .top-panel { display: none; }
#lk-chat .placeholder-content { justify-content: center; gap: 1.2rem; }
#lk-chat .placeholder { flex: 0 0 auto; height: auto; }
#lk-chat .examples { grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .7rem;
  width: 100%; max-width: 54rem; padding: .5rem; margin: 0; flex: 0 0 auto; }
#lk-chat .example { padding: .6rem; min-width: 0; }
#lk-chat .example-content { align-items: stretch; width: 100%; }
#lk-chat .example-image-container { width: 100%; height: 7rem; border-radius: .5rem;
  background: #fff; }
#lk-chat .example-image { width: 100%; height: 100%; object-fit: contain; border-radius: .5rem;
  margin: 0; }
#lk-chat .example-text { font-size: .85rem; }

.lk-empty { text-align: center; padding: 0 1rem; }
.lk-empty h2 { margin: 0 0 .3rem; font-size: 1.5rem; }
.lk-empty p { color: var(--body-text-color-subdued); }
.lk-pictures { display: flex; flex-wrap: wrap; gap: .4rem; justify-content: flex-end; }
.lk-pictures img { height: 9rem; max-width: 100%; width: auto; margin: 0 !important;
  border: 1px solid var(--border-color-primary); border-radius: .5rem; object-fit: contain; }
.lk-pictures.lk-many img { height: 6.5rem; }
.lk-facts, .lk-note, .lk-foot { font-size: .75rem; color: var(--body-text-color-subdued); }
.lk-status { color: var(--body-text-color-subdued); animation: lk-breathe 1.6s infinite; }
.lk-error { border-left: 3px solid #d9534f; padding-left: .7rem; margin-left: 2px; }
.lk-foot { text-align: center; }
@keyframes lk-breathe { 50% { opacity: .8; } }  /* grey text stays readable */
@media (prefers-reduced-motion: reduce) { .lk-status { animation: none; } }

#lk-tasks { flex-wrap: nowrap; overflow-x: auto; gap: .4rem; padding: 2px; scrollbar-width: none; }
#lk-tasks button { flex: 0 0 auto; white-space: nowrap; border-radius: 999px; }
#lk-box { border-radius: 1rem; }
#lk-settings, #lk-chats { z-index: 50; }
#lk-settings:not(.open), #lk-chats:not(.open) { visibility: hidden; }  /* nothing to tab into */

#lk-restored { display: none; }
.lk-saving { display: flex; flex-direction: column; gap: .4rem; }
#lk-chats h3 { margin: 1rem 0 .3rem; }
#lk-chats [data-chats]:is(button), .lk-chat-list button { border-radius: .5rem;
  border: 1px solid var(--border-color-primary); padding: .35rem .7rem; text-align: left;
  background: var(--background-fill-primary); color: var(--body-text-color); font-size: .875rem;
  font-weight: 500; }
#lk-chats button:hover { background: var(--background-fill-secondary); }
.lk-keep { display: flex; gap: .5rem; align-items: baseline; font-size: .875rem; }
.lk-chats-state { font-size: .8rem; min-height: 1.2em; margin: .3rem 0;
  color: var(--body-text-color-subdued); }
.lk-chat-list { list-style: none; padding: 0; margin: 0 0 .6rem; display: flex;
  flex-direction: column; gap: .35rem; }
.lk-chat-list:empty { display: none; }
.lk-chat-list li { display: flex; gap: .3rem; margin: 0; }
.lk-chat-list button:first-child { flex: 1 1 0; min-width: 0; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.lk-chat-list small { display: block; color: var(--body-text-color-subdued); }

.lk-look { margin-top: .3rem; padding: .15rem .6rem; font-size: .8rem; border-radius: 999px;
  border: 1px solid var(--border-color-primary); background: transparent;
  color: var(--body-text-color); cursor: pointer; }
.lk-look:hover { background: var(--background-fill-secondary); }
#lk-map { width: min(54rem, calc(100vw - 1.5rem)); max-height: calc(100dvh - 1.5rem);
  margin: auto; padding: .9rem 1rem 1rem; border-radius: .8rem; overflow: auto;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary);
  color: var(--body-text-color); font-family: var(--font); }
#lk-map::backdrop { background: rgb(0 0 0 / .55); }
.lk-map-head { display: flex; align-items: center; gap: .5rem; }
#lk-map h2 { flex: 1 1 0; margin: 0; font-size: 1.1rem; }
.lk-map-head button { border: 1px solid var(--border-color-primary); border-radius: .5rem;
  background: transparent; color: inherit; padding: .25rem .6rem; }
#lk-map form { display: flex; flex-wrap: wrap; gap: .5rem 1rem; margin: .6rem 0; }
#lk-map label { display: flex; flex: 1 1 14rem; min-width: 0; flex-direction: column;
  gap: .2rem; font-size: .8rem; }
#lk-map select { width: 100%; min-width: 0; padding: .4rem; font-size: .9rem; border-radius: .5rem;
  border: 1px solid var(--border-color-primary); color: var(--body-text-color);
  background: var(--background-fill-secondary); }
#lk-map img { display: block; max-width: 100%; max-height: 62dvh; margin: 0 auto;
  border: 1px solid var(--border-color-primary); border-radius: .5rem; }
#lk-map img:not([src]) { display: none; }
#lk-map p { margin: .5rem 0 0; font-size: .8rem; min-height: 1.3em;
  color: var(--body-text-color-subdued); }

@media (max-width: 640px) {
  .gradio-container .main { padding: .5rem .6rem !important; }
  .gradio-container main.contain > .column { height: calc(100dvh - 1rem); }
  #lk-again { display: none; }  /* the last answer has a button of its own */
  #lk-chat .examples { grid-template-columns: 1fr 1fr; }
  #lk-chat .example-image-container { height: 5rem; }
  .lk-pictures img { height: 8rem; }
  #lk-top button { padding: .3rem .6rem; }
}
"""
