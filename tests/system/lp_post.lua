-- For wrk with one thread: posts bodies of line protocol round robin, each time with other times.
--
-- BODIES: a directory with 0.lp, 1.lp, ...; in all their lines the time stamp ends with RRRRRRRJJJJ000 (before the newline), where
-- the R are to be replaced by the number of the request, from FIRST on, and the rest tells the lines of a body apart.
-- OUT: the file that gets one line of JSON. Every body is copied once into memory of its own; a request costs seven bytes a line.

local ffi = require("ffi")
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(_)
  local lines = tonumber(os.getenv("LINES"))
  number = tonumber(os.getenv("FIRST"))
  accepted, refused, first_refusal = 0, 0, ""
  bodies = {}
  local i = 0
  while true do
    local f = io.open(os.getenv("BODIES") .. "/" .. i .. ".lp", "rb")
    if not f then break end
    local text = wrk.format("POST", nil, { ["Content-Type"] = "text/plain; charset=utf-8" }, f:read("*a"))
    f:close()
    local places, at, n = ffi.new("uint32_t[?]", lines), 1, 0
    while true do
      local found = string.find(text, "RRRRRRR", at, true)
      if not found then break end
      assert(n < lines, "more lines than LINES")
      places[n] = found - 1
      n, at = n + 1, found + 7
    end
    assert(n == lines, "fewer lines than LINES")
    local bytes = ffi.new("uint8_t[?]", #text)
    ffi.copy(bytes, text, #text)
    i = i + 1
    bodies[i] = { bytes = bytes, length = #text, places = places }
  end
  assert(i > 0, "no bodies")
  count = lines
end

function request()
  local b = bodies[number % #bodies + 1]
  local digits = string.format("%07d", number)
  number = number + 1
  local bytes, places = b.bytes, b.places
  for i = 0, count - 1 do
    ffi.copy(bytes + places[i], digits, 7)
  end
  return ffi.string(bytes, b.length)
end

function response(status, _, body)
  if status == 204 then
    accepted = accepted + 1
  else
    refused = refused + 1
    if first_refusal == "" then first_refusal = status .. " " .. string.sub(body, 1, 100):gsub("[^%w ]", "?") end
  end
end

function done(summary, latency, _)
  local accepted, refused, why, number = 0, 0, "", 0
  for _, t in ipairs(threads) do
    accepted, refused, why, number = accepted + t:get("accepted"), refused + t:get("refused"), why .. t:get("first_refusal"), t:get("number")
  end
  local e = summary.errors
  local f = assert(io.open(os.getenv("OUT"), "w"))
  f:write(string.format(
    '{"accepted":%d,"refused":%d,"why":"%s","next":%d,"seconds":%.6f,"p50_ms":%.3f,"p99_ms":%.3f,"socket_errors":%d}\n',
    accepted, refused, why, number, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000, e.connect + e.read + e.write + e.timeout))
  f:close()
end
