-- Folds code cells that are mostly tests: readers see them after a click on "Tests".
local starts = {"^assert ", "^test_%w+%(", "^with expect_fail", "^with ExceptionExpected", "^test_fail"}

local function is_test(line)
  for _, start in ipairs(starts) do
    if line:match(start) then return true end
  end
  return false
end

-- The share of a cell's lines that are tests; lines that are indented belong to the line above them.
local function share_of_tests(text)
  local lines, tests, inside = 0, 0, false
  for line in text:gmatch("[^\n]+") do
    if not line:match("^%s*#") and not line:match("^%s*$") then
      if not line:match("^[%s%)%]}]") then inside = is_test(line) end
      lines = lines + 1
      if inside then tests = tests + 1 end
    end
  end
  return lines > 0 and tests/lines or 0, lines
end

function CodeBlock(block)
  if block.classes:includes("python") and (block.text:match("^def ") or block.text:match("^class ")) then
    -- A signature: nbdev writes the module of a notebook, and Python that of a default that a function makes.
    block.text = block.text:gsub("__main__%.", ""):gsub("=<factory>", "=...")
    return block
  end
  if not block.classes:includes("cell-code") or block.attributes["code-fold"] then return nil end
  local share, lines = share_of_tests(block.text)
  if lines >= 3 and share >= .5 then
    block.attributes["code-fold"] = "true"
    block.attributes["code-summary"] = "Tests"
    return block
  end
end

-- A picture with a caption is described by it: Quarto would leave its alt text empty.
function Image(image)
  if image.attributes['fig-alt'] or #image.caption == 0 then return nil end
  image.attributes['fig-alt'] = pandoc.utils.stringify(image.caption)
  return image
end
