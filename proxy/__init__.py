"""Verbatim: a reverse proxy for LLM APIs that never re-encodes a body.

The map. Three kinds of room; imports go one way, House -> Path -> Pure, and a test holds that.

Pure: bytes and values in, bytes and values out. No asyncio, no clock, no I/O.
  config      which keys there are             providers  those of a provider
  values      addresses, URLs, names, secrets
  schema      YAML with positions              shapes     what a value of it may be
  local       the config without a file
  formats     THE TABLE of wire formats        known      providers that need no base URLs
  errors      the one exception of the path    routes     path -> wire format
  body        the scan and the splice          grammar    JSON as patterns
  form        the model of a form              coding     looking into compressed bodies
  inner       names deeper in a body           readings   how a path may be read
  headers     which fields pass                inbound    the same of answers
  plan        model -> targets                 sse        where an event ends
  usage       tokens seen passing
  results     ``results_url`` of batches         framing    where an upstream answer ends
  grants      virtual keys, teams, customers   access     what they allow
  limits      windows and their counters       prices     what tokens cost
  job         requests that are answered later  jobheads  what of a head is asked, and kept
  jobviews    how jobs look                    notices    how their end is told

Path: what a request walks through.
  exchange    one request's record             handle     THE PATH, read top to bottom
  rules       what a config means for it       work       a job on the path
  models      the list of all of them          signing    AWS's signatures
  incoming    requests and their bodies come   arrival    the patience with a body
  original    what of it each target gets      bodies     the cap over all held ones
  holders     virtual key -> who holds it      quota      admit, charge
  ledger      changes of counters, in batches  journal    those that are not taken yet
  attempt     the plan's loop, every retry     tries      what one target still has
  outcome     what an attempt came to          keys       provider keys, and those that are out
  upstream    the door to the providers, pool  batches    answers that are held and changed
  connection  one connection                   sending    a request on its way
  answer      one upstream answer: waiting for it, reading it
  relay       an answer goes downstream         reply      one downstream answer as bytes
  pulse       when a ping is due               scanner    large bodies are scanned aside
  jobs        submit, poll, cancel             ports      what the path asks of the house

House: around it.
  server      start, reload, stop              listener   sockets, accepting
  door        one downstream connection        systemd    what it hands over and is told
  store       SQLite and Redis                 registry   making and changing virtual keys
  dispatcher  claims jobs, has them done       webhooks   tells their ends
  entry       one of them, or a team           views      how they are shown
  governance  ``/api/governance/*``            keycommand  ``verbatim-proxy keys``
  metrics     ``/metrics``                     accesslog  one line per request
  demo        the command and its proxy        demo_show  what is shown
  demo_upstream  the demo's provider           demo_bodies  what is sent there
  demo_answers  what all its APIs say          demo_anthropic  Anthropic's API
  demo_messages  what that says                demo_openai  OpenAI's API
  demo_genai  Gemini's API                     demo_cohere  Cohere's API
  __main__    the command line

The rules (the first: a rule may be broken where a comment says why).
  1. ``upstream``, ``connection``, ``sending`` and ``answer`` alone know how an upstream connection works;
     ``reply`` alone writes downstream.
  2. Bodies are immutable bytes, never re-encoded.
  3. ``attempt`` and ``tries`` decide every retry, and nobody else.
  4. Inside the path one exception type travels; foreign ones are mapped at the edge.
  5. Hop-by-hop names and credential names stand in ``headers`` only.
  6. No module state, no effect at import.
  7. A task has an owner that awaits or cancels it; nothing blocks the loop.
"""

__version__ = "0.1.0"
