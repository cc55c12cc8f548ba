// Where the model looked: a dialog with an image of the question, and the map of its words over it.
// It is computed when it is opened, and given up when it is closed.

(() => {
  const PATH = 'llavakit/map';
  let dialog = null;
  let asked = null;   // the request on its way
  let shown = null;   // the turn, and the button that opened it

  const part = (kind, properties, ...inside) => {
    const made = Object.assign(document.createElement(kind), properties);
    made.append(...inside);
    return made;
  };
  const options = (select, values, chosen) => {
    select.replaceChildren(...values.map(([value, text]) =>
      part('option', {value, textContent: text, selected: value === chosen})));
  };

  const build = () => {
    const close = part('button', {type: 'button', textContent: '✕', title: 'Close'});
    close.ariaLabel = 'Close';
    close.addEventListener('click', () => dialog.close());
    const images = part('select', {name: 'image'});
    const words = part('select', {name: 'word'});
    for (const select of [images, words]) select.addEventListener('change', show);
    const form = part('form', {}, part('label', {}, 'Image, the best match first', images),
      part('label', {}, 'Words', words));
    form.addEventListener('submit', (event) => event.preventDefault());
    const state = part('p', {});
    state.setAttribute('role', 'status');
    const title = part('h2', {id: 'lk-map-title', textContent: 'Where it looked'});
    const head = part('div', {className: 'lk-map-head'}, title, close);
    dialog = part('dialog', {id: 'lk-map'}, head, form, part('img', {alt: ''}), state);
    dialog.setAttribute('aria-labelledby', title.id);
    dialog.addEventListener('close', () => {
      asked?.abort();
      shown?.button.focus();
      shown = null;
    });
    dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
    document.body.append(dialog);
  };

  const find = (selector) => dialog.querySelector(selector);
  const show = async () => {
    asked?.abort();
    const mine = asked = new AbortController();
    const {chat, turn} = shown;
    const [image, word] = [find('[name=image]').value, find('[name=word]').value];
    find('p').textContent = 'Looking…';
    try {
      const answer = await fetch(`${PATH}?${new URLSearchParams({chat, turn, image, word})}`, {
        cache: 'no-store', signal: mine.signal,
        headers: {'X-Llavakit-Visit': sessionStorage.getItem('llavakit-visit') || ''},
      });
      if (!answer.ok) throw new Error(await answer.text());
      draw(await answer.json());
    } catch (error) {
      if (mine.signal.aborted) return;
      find('img').removeAttribute('src');
      find('p').textContent = error.message || String(error);
    }
  };
  const draw = (map) => {
    const name = map.ranking.find((one) => one.number === map.number).name;
    options(find('[name=image]'), map.ranking.map((one, place) =>
      [String(one.number), `${place + 1}. ${one.name} (${one.score.toFixed(2)})`]),
      String(map.number));
    const words = map.words.map((one) => [one, one]);
    options(find('[name=word]'), [['', 'The whole question'], ...words], map.word);
    const what = map.word ? `“${map.word}”` : 'the question';
    const img = find('img');
    img.src = map.image;
    img.alt = `${name}: red where it is most like ${what}, blue where least`;
    find('p').textContent = `${name}: red is most like ${what}, blue least. It shows what the `
      + 'image was found by, and is no proof of the answer.';
  };

  document.addEventListener('click', (event) => {
    const button = event.target.closest?.('.lk-look');
    if (!button) return;
    if (!dialog) build();
    shown = {chat: button.dataset.chat, turn: button.dataset.turn, button};
    options(find('[name=image]'), [['', 'The best match']], '');
    options(find('[name=word]'), [['', 'The whole question']], '');
    find('img').removeAttribute('src');
    dialog.showModal();
    show();
  });
})();
