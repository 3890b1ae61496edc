// The widgets of the page that clip_ft_app serves, instead of the scripts of Jupyter, which are a hundred times larger.
//
// Speaks the protocol of Jupyter kernels through a WebSocket: https://jupyter-client.readthedocs.io/en/stable/messaging.html
// and that of widgets: https://github.com/jupyter-widgets/ipywidgets/blob/main/packages/schema/messages.md
// Only the widgets of which the page consists are drawn, with the class names of ipywidgets.

{
  const config = JSON.parse(document.getElementById('jupyter-config-data').textContent);
  const kernel = `${config.baseUrl}api/kernels/${config.kernelId}`;
  const root = document.getElementById('cf-root');
  const models = new Map(); // by the id of their comm
  const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, '0')).join('');


  // Messages: the number of offsets, the offsets of the parts and of the end, and the parts: channel, four texts, buffers

  const PROTOCOL = 'v1.kernel.websocket.jupyter.org';
  const WORD = 8; // bytes of a number

  function encode(texts, buffers) {
    const parts = [...texts.map(text => new TextEncoder().encode(text)), ...buffers];
    const head = new DataView(new ArrayBuffer(WORD * (parts.length + 2)));
    const write = (i, number) => head.setBigUint64(WORD * i, BigInt(number), true);
    write(0, parts.length + 1);
    let offset = head.byteLength;
    parts.forEach((part, i) => {
      write(i + 1, offset);
      offset += part.byteLength;
    });
    write(parts.length + 1, offset);
    return new Blob([head, ...parts]);
  }

  function decode(data) {
    const head = new DataView(data);
    const read = i => Number(head.getBigUint64(WORD * i, true));
    const offsets = Array.from({ length: read(0) }, (_, i) => read(i + 1));
    const parts = offsets.slice(0, -1).map((start, i) => new DataView(data, start, offsets[i + 1] - start));
    const [, header, , , content] = parts.slice(0, 5).map((part, i) => i && JSON.parse(new TextDecoder().decode(part)));
    return { header, content, buffers: parts.slice(5) };
  }


  // The connection

  const MAX_ATTEMPTS = 8; // to connect again, for about 30 seconds
  const session = newId();
  const control = newId(); // the comm that asks for all widgets
  const unsent = [];
  let socket = null;
  let attempts = 0;
  let isLeaving = false;

  function send(type, content, metadata = {}, buffers = []) {
    const header = { msg_id: newId(), msg_type: type, session, username: '', date: new Date().toISOString(), version: '5.3' };
    unsent.push(encode(['shell', ...[header, {}, metadata, content].map(part => JSON.stringify(part))], buffers));
    flush();
  }

  function flush() {
    while (unsent.length && socket?.readyState === WebSocket.OPEN) socket.send(unsent.shift());
  }

  function connect() {
    socket = new WebSocket(`${location.origin.replace('http', 'ws')}${kernel}/channels?session_id=${session}`, [PROTOCOL]);
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => { attempts = 0; flush(); };
    socket.onmessage = event => receive(decode(event.data));
    socket.onclose = () => {
      if (!isLeaving && attempts++ < MAX_ATTEMPTS) setTimeout(connect, 100 * 2 ** attempts); // the server keeps messages
    };
  }

  function receive({ header, content, buffers }) {
    if (header.msg_type === 'comm_open' && content.target_name === 'jupyter.widget') {
      models.set(content.comm_id, new Model(content.comm_id, content.data.state));
    } else if (header.msg_type === 'comm_msg' && content.comm_id === control) {
      for (const [id, { state }] of Object.entries(content.data.states)) models.set(id, new Model(id, state));
      root.append(draw(models.get(root.dataset.model)));
    } else if (header.msg_type === 'comm_msg') {
      models.get(content.comm_id)?.receive(content.data, buffers);
    } else if (header.msg_type === 'comm_close') {
      models.delete(content.comm_id);
    }
  }


  // A widget, as seen by its view

  class Model {
    constructor(id, state) {
      Object.assign(this, { id, state, listeners: [] });
    }

    get(name) {
      return this.state[name];
    }

    model(name) { // the widget that a trait refers to
      return models.get(this.state[name]?.replace('IPY_MODEL_', ''));
    }

    on(event, listener) { // change, change:html or msg:custom
      this.listeners.push([event, listener]);
    }

    emit(event, ...values) {
      for (const [wanted, listener] of this.listeners) if (wanted === event) listener(...values);
    }

    change(state) {
      Object.assign(this.state, state);
      for (const name of Object.keys(state)) this.emit(`change:${name}`);
      this.emit('change');
    }

    receive({ method, state, content }, buffers) {
      if (method === 'update') this.change(state); // echo_update repeats what this page has sent
      if (method === 'custom') this.emit('msg:custom', content, buffers);
    }

    set(state) { // after an action of the visitor
      this.change(state);
      send('comm_msg', { comm_id: this.id, data: { method: 'update', state, buffer_paths: [] } });
    }

    send(content, _callbacks, buffers = []) {
      send('comm_msg', { comm_id: this.id, data: { method: 'custom', content } }, {}, buffers);
    }
  }


  // Views

  const make = (tag, className, properties = {}, ...children) => {
    const el = Object.assign(document.createElement(tag), { className }, properties);
    el.append(...children);
    return el;
  };
  const row = (className, ...children) => make('div', `jupyter-widgets widget-inline-hbox ${className}`, {}, ...children);
  const follow = (model, show) => { show(); model.on('change', show); };

  const box = className => model => {
    const el = make('div', `jupyter-widgets widget-container widget-box ${className}`);
    follow(model, () => { // leaves what is in its place there, so that it keeps the focus
      const children = model.get('children').map(id => draw(models.get(id.replace('IPY_MODEL_', ''))));
      for (const old of [...el.children]) if (!children.includes(old)) old.remove();
      children.forEach((child, i) => { if (el.children[i] !== child) el.insertBefore(child, el.children[i]); });
    });
    return el;
  };

  const button = className => model => {
    const el = make('button', `jupyter-widgets jupyter-button ${className}`, { type: 'button' });
    follow(model, () => {
      const icon = model.get('icon');
      el.replaceChildren(...icon ? [make('i', `fa fa-${icon}`)] : [], model.get('description'));
      el.title = model.get('tooltip') ?? '';
      el.disabled = model.get('disabled');
    });
    return el;
  };

  const slider = model => { // one handle, or two
    const number = Array.isArray(model.get('value')) ? 2 : 1;
    const name = model.get('tooltip') ?? '';
    const inputs = Array.from({ length: number }, () => make('input', '', { type: 'range', title: name, ariaLabel: name }));
    const track = make('div', 'cf-track', {}, make('div', 'cf-between'), ...inputs);
    inputs.forEach((input, i) => input.addEventListener('input', () => {
      const values = inputs.map(each => Number(each.value));
      if (number === 1) return model.set({ value: values[0] });
      values[i] = i ? Math.max(values[1], values[0]) : Math.min(values[0], values[1]); // handles do not pass each other
      model.set({ value: values });
    }));
    follow(model, () => {
      const { min, max, step, disabled } = model.state;
      const values = [model.get('value')].flat();
      inputs.forEach((input, i) => {
        Object.assign(input, { min, max, step, disabled });
        input.value = values[i];
      });
      const shares = (number === 1 ? [min, ...values] : values).map(value => (value - min) / Math.max(max - min, 1e-9));
      track.style.setProperty('--from', shares[0]);
      track.style.setProperty('--to', shares[1]);
    });
    return row('widget-slider widget-hslider', track);
  };

  const views = {
    VBoxModel: box('widget-vbox'),
    HBoxModel: box('widget-hbox'),
    ButtonModel: model => {
      const el = button('widget-button')(model);
      el.addEventListener('click', () => model.send({ event: 'click' }));
      return el;
    },
    FileUploadModel: button('widget-upload'), // the pane handles its clicks
    ToggleButtonModel: model => {
      const el = button('widget-toggle-button')(model);
      el.addEventListener('click', () => model.set({ value: !model.get('value') }));
      follow(model, () => {
        el.classList.toggle('mod-active', model.get('value'));
        el.ariaPressed = model.get('value');
      });
      return el;
    },
    TextModel: model => {
      const input = make('input', 'widget-input', { type: 'text', autocomplete: 'off' });
      input.addEventListener('input', () => model.set({ value: input.value }));
      input.addEventListener('keydown', event => { if (event.key === 'Enter') model.send({ event: 'submit' }); });
      follow(model, () => {
        input.placeholder = model.get('placeholder');
        input.title = model.get('tooltip') ?? '';
        input.ariaLabel = input.title || input.placeholder;
        if (input.value !== model.get('value')) input.value = model.get('value');
      });
      return row('widget-text', input);
    },
    HTMLModel: model => {
      const el = make('div', 'widget-html-content');
      let shown = null;
      follow(model, () => {
        if (shown !== model.get('value')) el.innerHTML = shown = model.get('value');
      });
      return row('widget-html', el);
    },
    LabelModel: model => {
      const el = row('widget-label');
      follow(model, () => { el.textContent = model.get('value'); });
      return el;
    },
    CheckboxModel: model => {
      const input = make('input', '', { type: 'checkbox' });
      const text = make('span', '');
      input.addEventListener('change', () => model.set({ value: input.checked }));
      follow(model, () => {
        input.checked = model.get('value');
        text[model.get('description_allow_html') ? 'innerHTML' : 'textContent'] = model.get('description');
        input.title = text.title = model.get('tooltip') ?? '';
      });
      return row('widget-checkbox', make('label', 'widget-label-basic', {}, input, text));
    },
    DropdownModel: model => {
      const select = make('select', '');
      select.addEventListener('change', () => model.set({ index: select.selectedIndex }));
      follow(model, () => {
        const labels = model.get('_options_labels');
        if (String(labels) !== String([...select.options].map(option => option.text))) {
          select.replaceChildren(...labels.map(label => make('option', '', { text: label })));
        }
        select.selectedIndex = model.get('index') ?? -1;
        select.title = model.get('tooltip') ?? '';
      });
      return row('widget-dropdown', select);
    },
    FloatSliderModel: slider,
    IntRangeSliderModel: slider,
    AnyModel: model => {
      const el = make('div', '');
      document.head.append(make('style', '', { textContent: model.get('_css') }));
      const script = URL.createObjectURL(new Blob([model.get('_esm')], { type: 'text/javascript' }));
      import(script).then(module => module.default.render({ model, el }));
      return el;
    },
  };

  function draw(model) { // one view per widget
    if (model.el) return model.el;
    const view = views[model.get('_model_name')];
    if (!view) throw new Error(`The served page cannot draw a ${model.get('_model_name')}.`);
    model.el = view(model);
    model.el.classList.add(...model.get('_dom_classes') ?? []);
    const layout = model.model('layout');
    if (layout) {
      follow(layout, () => {
        for (const [name, value] of Object.entries(layout.state)) {
          if (!name.startsWith('_')) model.el.style.setProperty(name.replaceAll('_', '-'), value ?? '');
        }
      });
    }
    return model.el;
  }


  addEventListener('pagehide', () => { // the kernel of this page ends with it
    isLeaving = true;
    navigator.sendBeacon(`${config.baseUrl}voila/api/shutdown/${config.kernelId}`);
  });
  addEventListener('pageshow', event => { if (event.persisted) location.reload(); });
  connect();
  send('comm_open', { comm_id: control, target_name: 'jupyter.widget.control', data: {} }, { version: '1.0.0' });
  send('comm_msg', { comm_id: control, data: { method: 'request_states' } });
}
