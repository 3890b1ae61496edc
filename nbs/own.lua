-- Runs after rendering. Quarto adds scripts from another host to each page with a table, for widgets that these pages
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

for path in (os.getenv('QUARTO_PROJECT_OUTPUT_FILES') or ''):gmatch('[^\n]+') do
  if path:match('%.html$') then
    local before = read(path)
    local text = before
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
