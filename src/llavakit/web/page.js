// Keys, and names for what the framework leaves without one.

document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape') return;
  const stop = document.querySelector('#lk-box .stop-button');
  if (stop) stop.click();
});

(() => {
  const NAMES = {
    '#lk-dark': 'Light or dark',
    '#lk-set': 'Settings',
    '#lk-chats-open': 'Chats',
    '#lk-box textarea': 'Your question',
    '#lk-box .submit-button': 'Send',
    '#lk-box .stop-button': 'Stop',
    '#lk-settings .toggle-button': 'Close the settings',
    '#lk-chats .toggle-button': 'Close the chats',
  };
  // The framework's lists lack items, and its items lists.
  const ROLES = {
    '#lk-chat .examples': 'group',
    '#lk-box .thumbnail-wrapper': 'group',
    '#lk-box .thumbnails': 'group',
  };
  const set = (element, name, value) => {
    if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  };
  const name = () => {
    for (const [selector, value] of Object.entries(NAMES))
      for (const element of document.querySelectorAll(selector)) set(element, 'aria-label', value);
    for (const [selector, role] of Object.entries(ROLES))
      for (const element of document.querySelectorAll(selector)) set(element, 'role', role);
    for (const element of document.querySelectorAll('#lk-chat .examples'))
      set(element, 'aria-label', 'Examples');
    for (const button of document.querySelectorAll('button[aria-label]'))
      if (!button.title && !button.innerText.trim()) button.title = button.ariaLabel;
    const dark = document.querySelector('#lk-dark');
    if (dark) set(dark, 'title', NAMES['#lk-dark']);
  };
  let due = false;
  new MutationObserver(() => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; name(); });
  }).observe(document, {childList: true, subtree: true});
})();
