// The results pane: shows the HTML from Python, and sends clicks on elements with data-action back.

const FRAME = `
  <div class="cf-busy" role="alert" hidden></div>
  <div class="cf-status" role="status"></div>
  <div class="cf-body"></div>
  <dialog class="cf-dialog"></dialog>`;
const BUSY_AFTER = 2000; // milliseconds without an answer

function download(name, data) {
  const url = URL.createObjectURL(new Blob([data]));
  Object.assign(document.createElement('a'), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const LARGE = 1e6; // bytes; larger images are shrunk before they travel
const LONGEST = 1600; // pixels, more than the model looks at

async function shrink(file) { // the file, or a smaller copy if the browser can read it
  if (file.size <= LARGE) return file;
  try {
    const image = await createImageBitmap(file, { imageOrientation: 'from-image' }); // upright, as the camera was held
    const scale = Math.min(1, LONGEST / Math.max(image.width, image.height));
    const size = { width: Math.max(1, image.width * scale), height: Math.max(1, image.height * scale) };
    const canvas = Object.assign(document.createElement('canvas'), size);
    const context = canvas.getContext('2d');
    context.fillStyle = '#fff'; // behind transparent pixels
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    image.close();
    const small = await new Promise(done => canvas.toBlob(done, 'image/jpeg', .92));
    return small && small.size < file.size ? small : file;
  } catch {
    return file; // such as HEIC; Python may be able to read it
  }
}

function setAddress(query, replace) { // the address of JupyterLab belongs to JupyterLab
  if (!document.body.dataset.voila || location.search.slice(1) === query) return;
  history[replace ? 'replaceState' : 'pushState'](null, '', query ? `?${query}` : location.pathname);
}

function takeOver(el, send) { // replaces the first results, which are part of the HTML, by the page
  const first = document.getElementById('cf-first');
  if (!first) return;
  const box = el.closest('.cf-page')?.querySelector('.cf-query input');
  if (!box) return void requestAnimationFrame(() => takeOver(el, send)); // the page is not complete
  const typed = first.querySelector('input[name=q]');
  const hasFocus = document.activeElement === typed;
  first.remove();
  window.display_cells();
  if (box.value !== typed.value) {
    box.value = typed.value;
    box.dispatchEvent(new Event('input', { bubbles: true }));
  }
  if (hasFocus) {
    box.focus();
    box.setSelectionRange(typed.selectionStart, typed.selectionEnd);
  }
  if (window.cf_click) send({ action: window.cf_click.action, value: window.cf_click.value });
}

function render({ model, el }) {
  el.classList.add('cf-pane');
  el.innerHTML = FRAME;
  const [busy, status, body, dialog] = ['busy', 'status', 'body', 'dialog'].map(name => el.querySelector(`.cf-${name}`));
  const texts = model.get('texts');
  busy.textContent = texts[document.body.dataset.voila ? 'busy' : 'busy.notebook'];
  dialog.setAttribute('aria-label', texts.details);
  if (document.body.dataset.voila) document.documentElement.lang = texts.language;
  const listeners = new AbortController();
  const page = () => el.closest('.cf-page') ?? el;

  const drawBody = () => {
    const first = document.querySelector('#cf-first .cf-body');
    if (first && !model.get('html')) body.replaceChildren(...first.childNodes);
    else body.innerHTML = model.get('html');
  };
  const drawStatus = () => { status.textContent = model.get('status'); };

  let timer = null;
  const ping = () => {
    if (timer) return;
    timer = setTimeout(() => { busy.hidden = false; }, BUSY_AFTER);
    model.send({ action: 'ping' });
  };
  const pong = () => {
    clearTimeout(timer);
    timer = null;
    busy.hidden = true;
  };

  const showDetails = html => {
    dialog.innerHTML = html;
    if (dialog.open) dialog.querySelector('[aria-current]')?.focus(); // another image of the product
    else dialog.showModal();
    dialog.querySelector('.cf-sheet').scrollTop = 0;
  };

  const onMessage = (message, buffers) => {
    if (message.pong) pong();
    if (message.details && el.isConnected) showDetails(message.details);
    if (message.address !== undefined) setAddress(message.address, message.replace);
    if (message.file) download(message.file, buffers[0]);
  };

  const chooser = Object.assign(document.createElement('input'), { type: 'file', accept: 'image/*' });
  const upload = async () => {
    const file = chooser.files[0];
    if (!file) return;
    chooser.value = ''; // the same file can be chosen again
    const small = await shrink(file);
    ping();
    if (small.size > model.get('max_upload')) {
      model.send({ action: 'too_large', value: (file.size / 1e6).toFixed(1) });
    } else {
      model.send({ action: 'upload' }, undefined, [await small.arrayBuffer()]);
    }
  };
  const onUploadButton = event => {
    if (!page().contains(event.target) || !event.target.closest('.widget-upload')) return;
    event.stopImmediatePropagation(); // the widget would send a file of any size
    chooser.click();
  };

  const toggles = () => [...page().querySelectorAll('.cf-toggle')];
  const openPanel = name => { // filters or tools; '' closes it
    const old = page().dataset.open;
    page().dataset.open = name;
    for (const each of toggles()) each.setAttribute('aria-expanded', each.matches(`.cf-toggle-${name || 'none'}`));
    const panels = { filters: '.cf-side', tools: '.cf-panel-tools' };
    page().querySelector(name ? `${panels[name]} .cf-shut` : `.cf-toggle-${old}`)?.focus();
  };
  const onPageClick = event => {
    if (!page().contains(event.target)) return;
    const toggle = event.target.closest('.cf-toggle');
    if (toggle) {
      const name = toggle.matches('.cf-toggle-filters') ? 'filters' : 'tools';
      openPanel(page().dataset.open === name ? '' : name);
    } else if (event.target.closest('.cf-shut')) {
      openPanel('');
    } else if (event.target.closest('.cf-skip')) {
      event.preventDefault();
      (body.querySelector('.cf-open') ?? body.querySelector('button'))?.focus();
    }
  };
  const onKey = event => {
    if (event.key === 'Escape' && !dialog.open && page().dataset.open && page().contains(event.target)) openPanel('');
  };

  const onClick = event => {
    const button = event.target.closest('[data-action]');
    const leaves = button && dialog.contains(button) && button.dataset.action !== 'open';
    if (event.target === dialog || leaves) dialog.close();
    if (!button || button.dataset.action === 'close') return;
    ping();
    model.send({ action: button.dataset.action, value: button.dataset.value });
  };

  model.on('change:html', drawBody);
  model.on('change:status', drawStatus);
  model.on('msg:custom', onMessage);
  el.addEventListener('click', onClick, { signal: listeners.signal });
  chooser.addEventListener('change', upload);
  document.addEventListener('click', onUploadButton, { signal: listeners.signal, capture: true });
  document.addEventListener('click', onPageClick, { signal: listeners.signal });
  document.addEventListener('keydown', onKey, { signal: listeners.signal });
  const onAddress = () => { ping(); model.send({ action: 'address', value: location.search }); };
  if (document.body.dataset.voila) addEventListener('popstate', onAddress, { signal: listeners.signal });
  for (const kind of ['input', 'click']) {
    const pingIfInside = event => { if (page().contains(event.target)) ping(); };
    document.addEventListener(kind, pingIfInside, { signal: listeners.signal });
  }
  requestAnimationFrame(() => {
    page().setAttribute('data-lm-suppress-shortcuts', 'true');
    for (const each of toggles()) each.setAttribute('aria-expanded', 'false');
  });
  drawBody();
  drawStatus();
  takeOver(el, action => { ping(); model.send(action); });

  return () => listeners.abort();
}

export default { render };
