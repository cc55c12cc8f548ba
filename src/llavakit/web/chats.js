// Chats in this browser's own storage (IndexedDB of this address), and their download.
// Texts of chats are only ever set as text, never as markup.

window.llavakitChats = (() => {
  const MOST = 50;  // chats that are kept; the oldest go
  const PATH = 'llavakit/chat';
  const OFF = 'llavakit-keep-no-chats';
  const token = () => sessionStorage.getItem('llavakit-visit') || '';

  const settled = (request) => new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  let opened = null;
  const base = () => opened ||= new Promise((resolve, reject) => {
    const request = indexedDB.open('llavakit', 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore('chats', {keyPath: 'id'});
      request.result.createObjectStore('images');
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => { opened = null; reject(request.error); };
  });
  const within = async (mode, does) => {
    const transaction = (await base()).transaction(['chats', 'images'], mode);
    const done = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
    const result = await does(transaction.objectStore('chats'), transaction.objectStore('images'));
    await done;
    return result;
  };

  const tell = (text) => {
    const state = document.querySelector('.lk-chats-state');
    if (state) state.textContent = text;
  };
  const guarded = async (does) => {
    try { tell(''); await does(); } catch (error) { tell(error.message || String(error)); }
  };
  const ask = async (path, options = {}) => {
    options.headers = {...options.headers, 'X-Llavakit-Visit': token()};
    const answer = await fetch(path, {cache: 'no-store', ...options});
    if (!answer.ok) throw new Error(await answer.text());
    return answer;
  };

  const digests = (chats) =>
    new Set(chats.flatMap((chat) => chat.turns.flatMap((turn) => turn.images.map((i) => i.digest))));
  const newest = (chats) => chats.sort((a, b) => b.time - a.time);
  // Removes what is too old, and images that no chat shows any more.
  const tidy = async (chats, images) => {
    const all = newest(await settled(chats.getAll()));
    for (const old of all.splice(MOST)) chats.delete(old.id);
    const shown = digests(all);
    for (const digest of await settled(images.getAllKeys()))
      if (!shown.has(digest)) images.delete(digest);
  };

  const store = async () => {
    const have = await within('readonly', (_, images) => settled(images.getAllKeys()));
    const shown = await (await ask(PATH, {headers: {'X-Llavakit-Known': have.slice(-200).join()}})).json();
    if (!shown.turns.length) return;
    const chat = {...shown, time: Date.now()};
    await within('readwrite', async (chats, images) => {
      for (const image of chat.turns.flatMap((turn) => turn.images)) {
        if (image.data) images.put(image.data, image.digest);
        delete image.data;
      }
      chats.put(chat);
      await tidy(chats, images);
    });
  };
  // One after the other, so that two answers in quick succession do not overtake each other.
  let last = Promise.resolve();
  const keep = () => last = last.then(() => guarded(async () => {
    if (localStorage.getItem(OFF)) return;
    await store();
    await list();
  }));

  const open = async (id) => {
    const chat = await within('readonly', async (chats, images) => {
      const found = await settled(chats.get(id));
      for (const image of found ? found.turns.flatMap((turn) => turn.images) : [])
        image.data = await settled(images.get(image.digest));
      return found;
    });
    if (!chat) throw new Error('This chat is not here any more.');
    const headers = {'Content-Type': 'application/json'};
    const answer = await ask(PATH, {method: 'POST', headers, body: JSON.stringify(chat)});
    const {id: renamed} = await answer.json();
    await within('readwrite', async (chats) => {
      const found = await settled(chats.get(id));
      chats.delete(id);
      if (found) chats.put({...found, id: renamed});
    });
    document.querySelector('#lk-restored').click();
    document.querySelector('#lk-chats.open .toggle-button')?.click();
    await list();
  };
  const remove = (id) => within('readwrite', async (chats, images) => {
    if (id === undefined) { chats.clear(); images.clear(); return; }
    chats.delete(id);
    await tidy(chats, images);
  });

  const button = (text, does, name) => {
    const made = document.createElement('button');
    made.type = 'button';
    made.textContent = text;
    if (name) made.ariaLabel = made.title = name;
    made.addEventListener('click', () => guarded(does));
    return made;
  };
  const row = (chat) => {
    const item = document.createElement('li');
    const title = chat.turns[0].question;
    const when = document.createElement('small');
    when.textContent = new Date(chat.time).toLocaleString();
    const opens = button(title, () => open(chat.id));
    opens.title = title.slice(0, 200);
    opens.append(when);
    const removes = async () => { await remove(chat.id); await list(); };
    item.append(opens, button('✕', removes, `Delete: ${title.slice(0, 80)}`));
    return item;
  };
  const list = async () => {
    const place = document.querySelector('.lk-chat-list');
    if (!place) return;
    const chats = newest(await within('readonly', (chats) => settled(chats.getAll())));
    place.replaceChildren(...chats.map(row));
    document.querySelector('[data-chats=clear]').hidden = !chats.length;
    document.querySelector('[data-chats=keep]').checked = !localStorage.getItem(OFF);
    if (!chats.length) tell('There are none yet.');
  };

  const download = async (form) => {
    const answer = await ask(`${PATH}?form=${form}`);
    const content = await answer.blob();
    const made = document.querySelector('#lk-chat .message-row');
    if (!made) throw new Error('Ask something first; there is nothing to download.');
    const link = document.createElement('a');
    link.href = URL.createObjectURL(content);
    link.download = `llavakit-chat-${new Date().toISOString().slice(0, 19).replaceAll(':', '')}.${form}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };

  document.addEventListener('click', (event) => {
    const pressed = event.target.closest?.('[data-chats], #lk-chats-open');
    if (!pressed) return;
    const what = pressed.dataset.chats;
    if (what === 'md' || what === 'json') guarded(() => download(what));
    else if (what === 'clear')
      guarded(async () => { await remove(); await list(); });
    else if (what === 'keep')
      pressed.checked ? localStorage.removeItem(OFF) : localStorage.setItem(OFF, 'yes');
    else guarded(list);
  });
  return {keep};
})();
