-- Runs after rendering. Links to names, which nbdev writes with the address of the published site, become links within
-- the site; if a page does not document the name (a private function), they lead to the page. Quarto adds scripts from another host to each page with a table, for widgets that these pages
-- do not have: they are removed. A page that still loads something from elsewhere stops the rendering.
local libraries = {
  '<script src="https://cdnjs%.cloudflare%.com/ajax/libs/[^>]*></script>%s*',
  '<script type="application/javascript">define%(\'jquery\', %[%],function%(%) {return window%.jQuery;}%)</script>%s*',
}
local loaded = {
  '<script[^>]*%ssrc="(https?://[^"]*)"', '<img[^>]*%ssrc="(https?://[^"]*)"', '<iframe[^>]*%ssrc="(https?://[^"]*)"',
  '<link[^>]*rel="stylesheet"[^>]*href="(https?://[^"]*)"', '<link[^>]*href="(https?://[^"]*)"[^>]*rel="stylesheet"',
}

local function read(path)
  local file = assert(io.open(path, 'rb'))
  local text = file:read('a')
  file:close()
  return text
end

local site = read('nbdev.yml'):match('site%-url: "([^"]+)"') .. '/'
local folder = (os.getenv('QUARTO_PROJECT_OUTPUT_DIR') or '_docs'):gsub('/$', '') .. '/'
local pages = {}

local function page_text(name)
  if pages[name] == nil then
    local file = io.open(folder .. name, 'rb')
    pages[name] = file and file:read('a') or false
    if file then file:close() end
  end
  return pages[name]
end

local function local_links(text, path)
  local inside = path:gsub('^.*' .. folder:match('([^/]+)/$'):gsub('%p', '%%%0') .. '/', '')
  local up = ('../'):rep(select(2, inside:gsub('/', '')))
  local pattern = '(<a [^>]-href=")' .. site:gsub('%p', '%%%0') .. '([^"#]*)#?([^"]*)"'
  return (text:gsub(pattern, function(start, page, anchor)
    if page == '' then page = 'index.html' end
    local target = page_text(page)
    if anchor ~= '' and (not target or target:find('id="' .. anchor .. '"', 1, true)) then page = page .. '#' .. anchor end
    return start .. up .. page .. '"'
  end))
end

for path in (os.getenv('QUARTO_PROJECT_OUTPUT_FILES') or ''):gmatch('[^\n]+') do
  if path:match('%.html$') then
    local before = read(path)
    local text = local_links(before, path)
    for _, library in ipairs(libraries) do text = text:gsub(library, '') end
    for _, pattern in ipairs(loaded) do
      local address = text:match(pattern)
      if address then error(path .. ' loads ' .. address .. ' from another host') end
    end
    if text ~= before then
      local file = assert(io.open(path, 'wb'))
      file:write(text)
      file:close()
    end
  end
end
