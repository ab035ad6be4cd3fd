// A page of same-origin frames, each of which shows one page of MiniWoB++; `peira.act` moves any number at once.
window.peira = (() => {
  // In ms. A page's own limit would end the episode on a slow machine; from 2^31 on setTimeout would not wait at all.
  const NO_TIMER = 2e9;
  const NO_TEXT = /^(button|checkbox|color|file|hidden|image|radio|range|reset|submit)$/;
  const texts = {}; // of the pages
  const frames = [];
  const focused = []; // the element of each frame that has the focus, as far as its page knows
  let acting = -1; // the frame whose page may hear of focus now

  // Written rather than navigated to: after some thousand navigations of frames Chromium refuses more of them
  // (net::ERR_INSUFFICIENT_RESOURCES), and in a new frame nothing of an earlier episode is left.
  async function load(index, page) {
    texts[page] ??= await fetch(`${page}.html`).then((response) => response.text());
    const frame = document.createElement('iframe');
    frame.width = 500;
    frame.height = 320;
    frame.style = 'position: fixed; left: -1000px'; // what is out of sight need not be painted
    if (frames[index]) frames[index].replaceWith(frame);
    else document.body.append(frame);
    frames[index] = frame;
    const loaded = new Promise((resolve) => { frame.onload = resolve; });
    frame.contentDocument.open();
    frame.contentDocument.write(texts[page]);
    frame.contentDocument.close();
    await loaded;
    const view = frame.contentWindow;
    if (!view.core) throw new Error(`the page ${page} did not load`);
    view.alert = () => {};
    frame.icons = await icons(view); // kept, for as long as the frame is there
    // The frames share one focus: what one frame gains, another loses, and its page must not hear of it.
    for (const type of ['focus', 'focusin', 'blur', 'focusout']) {
      view.addEventListener(type, (event) => {
        if (acting !== index) event.stopImmediatePropagation();
      }, true);
    }
    frame.dataset.page = page;
  }

  // The images that a page's style sheets put in place of elements, which have no size before these are loaded.
  function icons(view) {
    const images = [];
    for (const sheet of view.document.styleSheets) {
      for (const { style } of sheet.cssRules) {
        const address = /^url\("(.*)"\)/.exec(style?.content);
        if (!address) continue;
        const image = new view.Image();
        image.src = new URL(address[1], sheet.href ?? view.document.baseURI);
        images.push(image.decode().catch(() => {}).then(() => image)); // some pages name images that are not there
      }
    }
    return Promise.all(images);
  }

  async function reset(index, page, seed, anew) {
    if (anew || !frames[index] || frames[index].dataset.page !== page) await load(index, page);
    const view = frames[index].contentWindow;
    view.core.endEpisode(0);
    focused[index] = null;
    view.document.activeElement.blur();
    view.core.EPISODE_MAX_TIME = NO_TIMER;
    view.Math.seedrandom(seed);
    view.core.setDataMode('train');
    withFocus(index, () => view.core.startEpisodeReal());
  }

  // As if the frame had kept the focus since it was last acted on, and were to keep it.
  function withFocus(index, act) {
    const view = frames[index].contentWindow;
    view.focus();
    if (focused[index]) focused[index].focus({ preventScroll: true });
    acting = index;
    try {
      act(view, view.core.previousDOMInfo);
    } finally {
      acting = -1;
      focused[index] = view.document.activeElement;
    }
  }

  function click(index, ref) {
    withFocus(index, (view, elements) => {
      if (elements[ref]) view.core.elementClick(ref);
    });
  }

  function type(index, ref, text) {
    withFocus(index, (view, elements) => {
      const element = elements[ref];
      const isList = element instanceof view.HTMLSelectElement;
      const isField = element instanceof view.HTMLTextAreaElement
        || (element instanceof view.HTMLInputElement && !NO_TEXT.test(element.type));
      if (!(isList || isField) || element.disabled || element.readOnly) return;
      view.core.elementClick(ref);
      if (view.WOB_DONE_GLOBAL) return;
      if (isList) pick(view, element, text);
      else write(view, element, text);
    });
  }

  function pick(view, list, text) {
    const begins = (option) => option.text.trim().toLowerCase().startsWith(text.toLowerCase());
    const option = [...list.options].find(begins);
    if (!option) return;
    option.selected = true;
    tell(view, list, ['input', 'change']);
  }

  // In place of what the field held. One key after the other, since pages listen to keys and may refuse them.
  function write(view, field, text) {
    const most = field.maxLength >= 0 ? field.maxLength : Infinity;
    let written = ''; // not read from the field: a date's holds nothing until it is whole
    field.value = written;
    tell(view, field, ['input']);
    for (const key of text) {
      const stroke = (name) => field.dispatchEvent(
        new view.KeyboardEvent(name, { key, bubbles: true, cancelable: true }));
      if (stroke('keydown') && stroke('keypress') && written.length < most) {
        written += key;
        field.value = written;
        tell(view, field, ['input']);
      }
      stroke('keyup');
    }
    tell(view, field, ['change']);
  }

  function tell(view, element, names) {
    for (const name of names) element.dispatchEvent(new view.Event(name, { bubbles: true }));
  }

  // [ref, parent, tag, id, classes, text, value, left, top, width, height, focused], depth first.
  function flatten(index, node, parent, list) {
    // A text that has its element to itself is the element's, and a list's value is what is chosen in it.
    const isText = (child) => child.tag === 't';
    let { text = '', children, value = null } = node;
    if (children.length && children.every(isText)) {
      text = children.map((child) => child.text).join(' ');
      children = [];
    }
    const element = frames[index].contentWindow.core.previousDOMInfo[node.ref];
    if (element?.selectedOptions) value = [...element.selectedOptions].map((option) => option.text).join(', ');
    const classes = typeof node.classes === 'string' ? node.classes : ''; // an SVG element's are an object
    list.push([node.ref, parent, node.tag.toLowerCase(), node.id || '', classes, text, value,
      node.left, node.top, node.width, node.height, element === focused[index]]);
    for (const child of children) flatten(index, child, node.ref, list);
    return list;
  }

  function observe(index) {
    const view = frames[index].contentWindow;
    const goal = view.core.getUtterance();
    const done = view.WOB_DONE_GLOBAL;
    return {
      goal: typeof goal === 'string' ? goal : goal.utterance,
      done,
      raw: view.WOB_RAW_REWARD_GLOBAL,
      elements: done ? [] : flatten(index, view.core.getDOMInfo(), 0, []),
    };
  }

  // A frame whose page throws answers with `fault`, and is loaded anew when it is next reset.
  async function act(moves) {
    const acts = { reset, click, type };
    const faults = await Promise.all(moves.map(async ([index, name, ...rest]) => {
      try {
        await acts[name](index, ...rest);
        return null;
      } catch (fault) {
        return fault;
      }
    }));
    await new Promise((resolve) => { setTimeout(resolve); }); // what the page put off until after the event
    return JSON.stringify(moves.map(([index], place) => {
      try {
        if (faults[place]) throw faults[place];
        return observe(index);
      } catch (fault) {
        if (frames[index]) delete frames[index].dataset.page;
        return { fault: String(fault) };
      }
    }));
  }

  return { act };
})();
