// Starts the page, and says so if that is not possible.
{
  const start = document.getElementById('cf-start');
  const fail = error => {
    start.hidden = false;
    start.textContent = `${start.dataset.failed} ${error?.message ?? error}`;
  };
  if (location.protocol === 'file:') start.textContent = start.dataset.file; // browsers do not read other files then
  else import('./web.js').then(page => page.ready).catch(fail);
}
