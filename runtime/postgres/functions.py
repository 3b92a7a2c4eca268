"""The functions of the database: each does one thing whole or not at all, and can be called again after a lost answer.

`{s}` stands for the schema. The rules that all of them keep:

- what concerns a session locks the row of the session first, so everything of one session happens in an order;
- `pending` counts the open messages (accepted or started) of a session exactly: a session with some is conducted;
- a message of no session has a place of its own, `m:<number>`, and is claimed like a session;
- a node may change what belongs to a session only while its own id is the owner: a node that was reaped cannot.

READ COMMITTED: each statement within a function sees what was committed before it began.
"""

from __future__ import annotations

TABLES = """
create table {s}.form (version int not null, made_at timestamptz not null default clock_timestamp());
create table {s}.node (
  id bigint primary key, name text not null, host text not null, pid int not null,
  ttl double precision not null, grace double precision not null,
  joined_at timestamptz not null default clock_timestamp(), beat_at timestamptz not null default clock_timestamp(),
  figures text);
create table {s}.session (
  place text collate "C" primary key, pending int not null default 0, rank int not null default 1, since bigint,
  owner bigint, fence bigint not null default 0, nonce bigint, calls bigint not null default 0,
  incarnation int not null default 0, next_seq bigint not null default 0, last_seq bigint,
  write_nonce bigint, write_until timestamptz, wanted boolean not null default false) with (fillfactor = 60);
create index session_owned on {s}.session (owner) where owner is not null;
create index session_ready on {s}.session (rank, since) where owner is null and pending > 0;
create table {s}.entry (
  place text collate "C" not null, incarnation int not null, seq bigint not null, fence bigint, token bigint,
  line text not null, primary key (place, incarnation, seq));
create table {s}.message (
  id bigint generated always as identity primary key, place text collate "C" not null,
  lane text not null, session text, priority text, timeout double precision, when_busy text,
  body bytea not null, route bytea not null, dedupe text, digest bytea not null, repeat int not null,
  first boolean not null, again bigint, ask text, state text not null default 'accepted',
  attempt int not null default 0, token bigint not null, taken_by bigint not null, node bigint,
  accepted_at timestamptz not null default clock_timestamp(), started_at timestamptz, ended_at timestamptz,
  reason text not null default '', result bytea, told boolean not null default false, asked text
  ) with (fillfactor = 80);
create unique index message_token on {s}.message (token);
create unique index message_dedupe on {s}.message (lane, coalesce(session, ''), dedupe) where dedupe is not null;
create index message_open on {s}.message (place, id) where state in ('accepted', 'started');
create index message_kept on {s}.message (state, id) where state in ('waiting', 'parked', 'unknown');
create index message_ended on {s}.message (ended_at) where ended_at is not null;
create index message_asked on {s}.message (asked) where asked is not null;
create table {s}.ask (
  id text primary key, key text, lane text not null, session text, route bytea not null, question bytea not null,
  options bytea, keep bytea not null, asked_at timestamptz not null, expires_at timestamptz, state text not null,
  value bytea, by text, ended_at timestamptz, answer bigint);
create unique index ask_key on {s}.ask (lane, coalesce(session, ''), key) where key is not null and state = 'open';
create index ask_open on {s}.ask (expires_at) where state = 'open';
create index ask_ended on {s}.ask (ended_at) where ended_at is not null;
create table {s}.schedule (name text primary key, served double precision not null);
create table {s}.want (
  place text collate "C" not null, node bigint not null, after bigint not null, at timestamptz not null
  default clock_timestamp(), primary key (place, node));
create table {s}.command (
  id bigint generated always as identity primary key, target bigint not null, asker bigint not null, kind text not null,
  arguments text not null, asked_at timestamptz not null default clock_timestamp(), answer text, failed boolean);
create index command_target on {s}.command (target) where answer is null;
"""

# `tell` wakes a node, or all with 0. A hint only: each node looks by itself twice a second.
FUNCTIONS = """
create function {s}.tell(p_node bigint) returns void language sql as
$$ select pg_notify('{channel}', p_node::text) $$;

create function {s}.locked(p_place text) returns {s}.session language plpgsql as $$
declare t {s}.session;
begin
  loop  -- a row of which nothing was left may be deleted in between
    select * into t from {s}.session x where x.place = p_place for update;
    if found then return t; end if;
    insert into {s}.session (place) values (p_place) on conflict do nothing;
  end loop;
end $$;

create function {s}.accept(
  p_place text, p_rank int, p_lane text, p_session text, p_priority text, p_timeout double precision,
  p_when_busy text, p_body bytea, p_route bytea, p_dedupe text, p_digest bytea, p_repeat int, p_first boolean,
  p_again bigint, p_ask text, p_token bigint, p_node bigint, p_claims boolean)
returns table (id bigint, is_new boolean, same_body boolean, state text, owner bigint, before bigint)
language plpgsql as $$
#variable_conflict use_column
declare
  s {s}.session; known {s}.message; made bigint; older bigint; mine bigint; hint boolean;
begin
  s := {s}.locked(p_place);
  for attempt in 1..10 loop
    select m.* into known from {s}.message m
     where m.token = p_token
        or p_dedupe is not null and m.lane = p_lane and coalesce(m.session, '') = coalesce(p_session, '')
           and m.dedupe = p_dedupe limit 1;
    if found then
      if known.token <> p_token then
        if s.pending = 0 and left(p_place, 2) = 'm:' then
          delete from {s}.session t where t.place = p_place;
        end if;
        return query select known.id, false, known.digest = p_digest, known.state, null::bigint, null::bigint;
        return;
      end if;
      exit;
    end if;
    insert into {s}.message (place, lane, session, priority, timeout, when_busy, body, route, dedupe, digest, repeat,
        first, again, ask, token, taken_by)
      values (p_place, p_lane, p_session, p_priority, p_timeout, p_when_busy, p_body, p_route, p_dedupe, p_digest,
        p_repeat, p_first, p_again, p_ask, p_token, p_node)
      on conflict do nothing returning message.id into made;
    exit when made is not null;
  end loop;
  if made is null and known.id is null then
    raise exception 'lanes: the key of a message changes hands too often' using errcode = '40001';
  end if;
  mine := s.owner;
  if made is not null then
    if s.owner is null and p_claims and exists (select from {s}.node n where n.id = p_node for key share) then
      mine := p_node;
    end if;
    hint := mine is distinct from p_node;
    update {s}.session t set pending = s.pending + 1, owner = mine,
        fence = t.fence + case when mine is distinct from s.owner then 1 else 0 end,
        nonce = case when mine is distinct from s.owner then null else t.nonce end,
        rank = case when s.pending = 0 then p_rank else least(s.rank, p_rank) end,
        since = case when s.pending = 0 then made else s.since end
      where t.place = p_place;
    if hint then
      perform {s}.tell(coalesce(mine, 0));
    end if;
  end if;
  select max(m.id) into older from {s}.message m
    where m.place = p_place and m.state = 'accepted' and m.lane = p_lane and m.id < coalesce(made, known.id);
  return query select coalesce(made, known.id), true, true, coalesce(known.state, 'accepted'),
    case when s.wanted then null else mine end, older;
end $$;

create function {s}.started(p_node bigint, p_place text, p_nonce bigint, p_ids bigint[], p_all boolean) returns bigint
language plpgsql as $$
declare f bigint := 0;
begin
  perform 1 from {s}.session t where t.place = p_place
    or t.place in (select m.place from {s}.message m where m.id = any(p_ids)) order by t.place for update;
  if p_all and not exists (select from {s}.session t where t.place = p_place and t.nonce = p_nonce) and (
      select count(*) from {s}.message m join {s}.session t on t.place = m.place
      where m.id = any(p_ids) and m.state in ('accepted', 'started', 'parked') and t.owner = p_node
    ) <> cardinality(p_ids) then
    return -1;  -- one of them has ended elsewhere, or is another node's
  end if;
  if p_nonce is not null then
    update {s}.session t set fence = t.fence + 1, nonce = p_nonce, calls = 0, last_seq = null
      where t.place = p_place and t.owner = p_node and t.nonce is distinct from p_nonce returning t.fence into f;
    if not found then
      select t.fence into f from {s}.session t
        where t.place = p_place and t.owner = p_node and t.nonce = p_nonce;
      return f;  -- it was done before, or null: this node does not conduct it
    end if;
  end if;
  with o as (select m.id, m.place, m.state from {s}.message m join {s}.session t on t.place = m.place
       where m.id = any(p_ids) and m.state in ('accepted', 'started', 'parked') and t.owner = p_node for update of m),
    u as (update {s}.message m set state = 'started', attempt = m.attempt + 1, started_at = clock_timestamp(),
       ended_at = null, reason = '', node = p_node from o where m.id = o.id returning m.id)
    update {s}.session t set pending = t.pending + p.n
      from (select o.place, count(*) n from o where o.state = 'parked' group by o.place) p where t.place = p.place;
  return f;
end $$;

create function {s}.ended(
  p_node bigint, p_ids bigint[], p_state text, p_reason text, p_result bytea, p_before text[]) returns int
language plpgsql as $$
declare n int;
begin
  perform 1 from {s}.session t where t.place in (select m.place from {s}.message m where m.id = any(p_ids))
    order by t.place for update;
  with o as (select m.id, m.place, m.taken_by, m.state in ('accepted', 'started') as is_open
       from {s}.message m left join {s}.session t on t.place = m.place
       where m.id = any(p_ids) and m.state = any(p_before)
         and (m.state not in ('accepted', 'started') or t.owner = p_node) for update of m),
    u as (update {s}.message m set state = p_state, ended_at = clock_timestamp(), reason = p_reason,
       result = p_result from o where m.id = o.id),
    c as (update {s}.session t set pending = t.pending - p.n
       from (select o.place, count(*) n from o where o.is_open group by o.place) p where t.place = p.place)
    select count(*) into n from o;
  perform {s}.tell(m.taken_by) from {s}.message m join {s}.node d on d.id = m.taken_by
    where m.id = any(p_ids) and m.taken_by <> p_node group by m.taken_by;
  return n;
end $$;

create function {s}.waits_for(p_node bigint, p_ids bigint[], p_ask text, p_reason text, p_before text[], p_done text[])
returns void language plpgsql as $$
begin
  perform 1 from {s}.session t where t.place in (select m.place from {s}.message m where m.id = any(p_ids))
    order by t.place for update;
  perform 1 from {s}.ask a where a.id = p_ask and a.state = 'open' for share;
  if found then
    update {s}.message m set asked = p_ask where m.id = any(p_ids);
    perform {s}.ended(p_node, p_ids, 'waiting', p_reason, null, p_before);
  else
    perform {s}.ended(p_node, p_ids, 'done', 'asked, and answered meanwhile', null, p_done);
  end if;
end $$;

create function {s}.cancelled(p_node bigint, p_lane text, p_session text, p_reason text) returns setof bigint
language plpgsql as $$
begin
  perform 1 from {s}.session t where (t.owner is null or t.owner = p_node) and t.place in (
      select m.place from {s}.message m where m.state = 'accepted' and (p_lane is null or m.lane = p_lane)
        and (p_session is null or m.session = p_session)) order by t.place for update;
  return query
  with u as (update {s}.message m set state = 'cancelled', ended_at = clock_timestamp(), reason = p_reason
      from {s}.session t where t.place = m.place and (t.owner is null or t.owner = p_node) and m.state = 'accepted'
        and (p_lane is null or m.lane = p_lane) and (p_session is null or m.session = p_session)
      returning m.id, m.place),
    c as (update {s}.session t set pending = t.pending - p.n
      from (select u.place, count(*) n from u group by u.place) p where t.place = p.place)
  select u.id from u;
end $$;

create function {s}.refused(p_node bigint, p_id bigint, p_reason text, p_before text[]) returns void
language plpgsql as $$
begin
  perform {s}.ended(p_node, array[p_id], 'dropped', p_reason, null, p_before);
  update {s}.message m set dedupe = null where m.id = p_id and m.state = 'dropped';
end $$;

create function {s}.again(p_id bigint) returns boolean language plpgsql as $$
declare v_place text; o bigint;
begin
  select m.place into v_place from {s}.message m where m.id = p_id;
  if not found then return false; end if;
  o := ({s}.locked(v_place)).owner;
  update {s}.message m set state = 'accepted', attempt = 0, ended_at = null, reason = '', started_at = null,
      accepted_at = clock_timestamp()
    where m.id = p_id and m.state in ('parked', 'dropped', 'unknown');
  if not found then return false; end if;
  update {s}.session t set pending = t.pending + 1, since = case when t.pending = 0 then p_id else least(t.since, p_id)
    end where t.place = v_place;
  perform {s}.tell(coalesce(o, 0));
  return true;
end $$;

create function {s}.append(
  p_place text, p_node bigint, p_fence bigint, p_nonce bigint, p_call bigint, p_writer bigint, p_lines text[])
returns table (code text, seq bigint, incarnation int) language plpgsql as $$
#variable_conflict use_column
declare t {s}.session;
begin
  select * into t from {s}.session x where x.place = p_place for update;
  if not found or t.owner is distinct from p_node or t.fence <> p_fence or t.nonce is distinct from p_nonce then
    return query select 'lost'::text, t.fence, t.incarnation; return;
  end if;
  if t.calls = p_call then
    return query select 'ok'::text, t.last_seq, t.incarnation; return;
  end if;
  if t.calls <> p_call - 1 then
    return query select 'gap'::text, t.calls, t.incarnation; return;
  end if;
  if t.write_nonce is not null and t.write_nonce is distinct from p_writer and t.write_until > clock_timestamp() then
    return query select 'busy'::text, 0::bigint, t.incarnation; return;
  end if;
  if p_writer is not null and t.write_nonce is distinct from p_writer then
    return query select 'unlocked'::text, 0::bigint, t.incarnation; return;
  end if;
  insert into {s}.entry (place, incarnation, seq, fence, line)
    select p_place, t.incarnation, t.next_seq + l.n - 1, p_fence, l.line
    from unnest(p_lines) with ordinality l(line, n);
  update {s}.session x set next_seq = t.next_seq + cardinality(p_lines), calls = p_call,
    last_seq = t.next_seq + cardinality(p_lines) where x.place = p_place;
  return query select 'ok'::text, t.next_seq + cardinality(p_lines), t.incarnation;
end $$;

create function {s}.note(p_place text, p_node bigint, p_token bigint, p_writer bigint, p_lines text[])
returns table (code text, seq bigint, incarnation int) language plpgsql as $$
#variable_conflict use_column
declare t {s}.session; done bigint;
begin
  t := {s}.locked(p_place);
  if not exists (select from {s}.node n where n.id = p_node for key share) then
    return query select 'lost'::text, t.fence, t.incarnation; return;
  end if;
  select max(e.seq) into done from {s}.entry e where e.place = p_place and e.incarnation = t.incarnation
    and e.seq >= t.next_seq - 1000 and e.token = p_token;
  if done is not null then
    return query select 'ok'::text, done + 1, t.incarnation; return;
  end if;
  if t.write_nonce is not null and t.write_nonce is distinct from p_writer and t.write_until > clock_timestamp() then
    return query select 'busy'::text, 0::bigint, t.incarnation; return;
  end if;
  if p_writer is not null and t.write_nonce is distinct from p_writer then
    return query select 'unlocked'::text, 0::bigint, t.incarnation; return;
  end if;
  insert into {s}.entry (place, incarnation, seq, fence, token, line)
    select p_place, t.incarnation, t.next_seq + l.n - 1, t.fence, p_token, l.line
    from unnest(p_lines) with ordinality l(line, n);
  update {s}.session x set next_seq = t.next_seq + cardinality(p_lines) where x.place = p_place;
  return query select 'ok'::text, t.next_seq + cardinality(p_lines), t.incarnation;
end $$;

create function {s}.finish(
  p_place text, p_node bigint, p_fence bigint, p_nonce bigint, p_call bigint, p_writer bigint, p_lines text[],
  p_ids bigint[], p_before text[], p_result bytea)
returns table (code text, seq bigint, incarnation int) language plpgsql as $$
#variable_conflict use_column
declare a record;
begin
  select * into a from {s}.append(p_place, p_node, p_fence, p_nonce, p_call, p_writer, p_lines);
  if a.code = 'ok' then
    perform {s}.ended(p_node, p_ids, 'done', '', p_result, p_before);
  end if;
  return query select a.code, a.seq, a.incarnation;
end $$;

create function {s}.write_lease(p_place text, p_node bigint, p_nonce bigint, p_seconds double precision) returns boolean
language plpgsql as $$
begin
  perform {s}.locked(p_place);
  update {s}.session t set write_nonce = p_nonce,
      write_until = clock_timestamp() + make_interval(secs => p_seconds)
    where t.place = p_place and exists (select from {s}.node n where n.id = p_node)
      and (t.write_nonce is null or t.write_nonce = p_nonce or t.write_until < clock_timestamp());
  return found;
end $$;

create function {s}.replaced(
  p_place text, p_node bigint, p_writer bigint, p_incarnation int, p_through bigint, p_lines text[])
returns table (code text, seq bigint, incarnation int) language plpgsql as $$
#variable_conflict use_column
declare t {s}.session; n bigint := cardinality(p_lines);
begin
  select * into t from {s}.session x where x.place = p_place for update;
  if t.write_nonce is distinct from p_writer or t.write_until < clock_timestamp() then
    if t.incarnation = p_incarnation + 1 and t.last_seq = -p_writer then
      return query select 'ok'::text, t.next_seq, t.incarnation; return;
    end if;
    return query select 'unlocked'::text, 0::bigint, t.incarnation; return;
  end if;
  if t.incarnation <> p_incarnation or p_through > t.next_seq then
    return query select 'replaced'::text, 0::bigint, t.incarnation; return;
  end if;
  insert into {s}.entry (place, incarnation, seq, fence, line)
    select p_place, t.incarnation + 1, l.n - 1, t.fence, l.line from unnest(p_lines) with ordinality l(line, n)
    union all
    select p_place, t.incarnation + 1, e.seq - p_through + n, e.fence, e.line from {s}.entry e
      where e.place = p_place and e.incarnation = t.incarnation and e.seq >= p_through;
  delete from {s}.entry e where e.place = p_place and e.incarnation = t.incarnation;
  update {s}.session x set incarnation = t.incarnation + 1, next_seq = n + t.next_seq - p_through,
    last_seq = n + t.next_seq - p_through where x.place = p_place;
  return query select 'ok'::text, n + t.next_seq - p_through, t.incarnation + 1;
end $$;

create function {s}.put_away(p_place text, p_node bigint, p_fence bigint, p_nonce bigint, p_keep boolean)
returns table (code text, entries bigint, incarnation int) language plpgsql as $$
#variable_conflict use_column
declare t {s}.session;
begin
  select * into t from {s}.session x where x.place = p_place for update;
  if not found or t.owner is distinct from p_node or t.fence <> p_fence or t.nonce is distinct from p_nonce then
    return query select 'lost'::text, 0::bigint, t.incarnation; return;
  end if;
  if t.next_seq = 0 then
    return query select 'ok'::text, 0::bigint, t.incarnation; return;
  end if;
  if not p_keep then
    delete from {s}.entry e where e.place = p_place and e.incarnation = t.incarnation;
  end if;
  update {s}.session x set incarnation = t.incarnation + 1, next_seq = 0, write_nonce = null, write_until = null
    where x.place = p_place;
  return query select 'ok'::text, t.next_seq, t.incarnation;
end $$;

create function {s}.recovered(p_node bigint, p_places text[], p_ids bigint[])
returns table (again bigint, unknown bigint) language plpgsql as $$
#variable_conflict use_column
begin
  perform 1 from {s}.session t where t.owner = p_node and (t.place = any(p_places)
    or t.place in (select m.place from {s}.message m where m.id = any(p_ids))) order by t.place for update;
  return query
  with o as (select m.id, m.place, m.attempt < m.repeat as may
      from {s}.message m join {s}.session t on t.place = m.place
      where t.owner = p_node and m.state = 'started' and (m.id = any(p_ids) or m.place = any(p_places))
      for update of m),
    u as (update {s}.message m set state = case when o.may then 'accepted' else 'unknown' end,
      started_at = case when o.may then null else m.started_at end,
      ended_at = case when o.may then null else clock_timestamp() end, told = false,
      reason = case when o.may then '' else 'the process ended while it was being answered' end
      from o where m.id = o.id),
    p as (update {s}.session t set pending = t.pending - c.n
      from (select o.place, count(*) n from o where not o.may group by o.place) c where t.place = c.place)
  select count(*) filter (where o.may), count(*) filter (where not o.may) from o;
end $$;

create function {s}.reaped(p_node bigint) returns table (place text, name text, pending int)
language plpgsql as $$
#variable_conflict use_column
declare gone bigint[]; names text; places text[];
begin
  if not exists (select from {s}.node n where n.id = p_node for key share) then return; end if;
  select array_agg(d.id), string_agg(d.name || ' (' || d.host || ', process ' || d.pid || ')', ', ') into gone, names
    from (select n.id, n.name, n.host, n.pid from {s}.node n where n.id <> p_node
      and n.beat_at + make_interval(secs => n.ttl + n.grace) < clock_timestamp() for update skip locked) d;
  if gone is null then return; end if;
  delete from {s}.node n where n.id = any(gone);
  delete from {s}.want w where w.node = any(gone);
  begin  -- what the dead node has left on the wire, or in a transaction that was cut in the middle
    perform pg_terminate_backend(a.pid) from pg_stat_activity a
      where a.application_name = any(select 'lanes ' || g from unnest(gone) g) and a.pid <> pg_backend_pid();
  exception when insufficient_privilege then null;
  end;
  with u as (update {s}.session t set owner = p_node, nonce = null, fence = t.fence + 1
    where t.owner = any(gone) returning t.place) select array_agg(u.place) into places from u;
  perform {s}.recovered(p_node, places, null);
  update {s}.command c set answer = '"the node has gone"', failed = true
    where c.target = any(gone) and c.answer is null;
  return query select t.place, names, t.pending from {s}.session t where t.place = any(places);
  return query select null::text, names, 0;
end $$;

create function {s}.claimed(p_node bigint, p_limit int) returns setof text language sql as $$
  with me as (select n.id from {s}.node n where n.id = p_node for key share),
    pick as (select t.place from me, {s}.session t where t.owner is null and t.pending > 0
      order by t.rank, t.since limit p_limit for update of t skip locked)
  update {s}.session t set owner = p_node, fence = t.fence + 1, nonce = null from pick
    where t.place = pick.place returning t.place $$;

create function {s}.wanted(p_node bigint, p_place text) returns boolean language plpgsql as $$
declare t {s}.session;
begin
  t := {s}.locked(p_place);
  if not exists (select from {s}.node n where n.id = p_node for key share) then return null; end if;
  if t.owner is null then
    update {s}.session x set owner = p_node, fence = t.fence + 1, nonce = null where x.place = p_place;
    return true;
  end if;
  if t.owner = p_node then return true; end if;
  insert into {s}.want (place, node, after)
    values (p_place, p_node, coalesce((select max(m.id) from {s}.message m where m.place = p_place), 0))
    on conflict do nothing;
  update {s}.session x set wanted = true where x.place = p_place;
  perform {s}.tell(t.owner);
  return false;
end $$;

create function {s}.left_alone(p_node bigint, p_places text[], p_even_pending boolean) returns setof text
language plpgsql as $$
#variable_conflict use_column
declare t {s}.session; next bigint;
begin
  for t in select * from {s}.session x where x.place = any(p_places) and x.owner = p_node order by x.place for update
  loop
    next := null;
    if t.wanted then
      select w.node into next from {s}.want w join {s}.node n on n.id = w.node
        where w.place = t.place and w.node <> p_node order by w.at limit 1;
      delete from {s}.want w where w.place = t.place and w.node = next;
      update {s}.session x set wanted = exists (select from {s}.want w where w.place = t.place) where x.place = t.place;
    end if;
    if next is null and t.pending > 0 and not p_even_pending then continue; end if;
    if next is null and t.pending = 0 and left(t.place, 2) = 'm:' then
      delete from {s}.session x where x.place = t.place;
    else
      update {s}.session x set owner = next, nonce = null, fence = t.fence + 1,
        write_nonce = case when t.write_nonce is not null and t.write_until < clock_timestamp() then null
          else t.write_nonce end where x.place = t.place;
      if next is not null then perform {s}.tell(next);
      elsif t.pending > 0 then perform {s}.tell(0); end if;
    end if;
    return next t.place;
  end loop;
end $$;

create function {s}.gone(p_node bigint) returns int language plpgsql as $$
declare places text[];
begin
  select array_agg(t.place) into places from {s}.session t where t.owner = p_node;
  perform {s}.recovered(p_node, places, null);
  perform {s}.left_alone(p_node, places, true);
  delete from {s}.want w where w.node = p_node;
  update {s}.command c set answer = '"the node has gone"', failed = true where c.target = p_node and c.answer is null;
  delete from {s}.node n where n.id = p_node;
  return coalesce(cardinality(places), 0);
end $$;

create function {s}.answered(
  p_ask text, p_state text, p_value bytea, p_by text, p_place text, p_rank int, p_lane text, p_session text,
  p_body bytea, p_route bytea, p_dedupe text, p_repeat int, p_token bigint, p_node bigint, p_claims boolean)
returns table (id bigint, is_new boolean, same_body boolean, state text, owner bigint, before bigint)
language plpgsql as $$
#variable_conflict use_column
declare r record;
begin
  insert into {s}.session (place) values (p_place) on conflict do nothing;
  perform 1 from {s}.session t where t.place = p_place
    or t.place in (select m.place from {s}.message m where m.asked = p_ask) order by t.place for update;
  update {s}.ask a set state = p_state, value = p_value, by = p_by, ended_at = clock_timestamp(), answer = p_token
    where a.id = p_ask and a.state = 'open';
  if not found and not exists (select from {s}.ask a where a.id = p_ask and a.answer = p_token) then
    if left(p_place, 2) = 'm:' then
      delete from {s}.session t where t.place = p_place and t.pending = 0;
    end if;
    return;
  end if;
  select * into r from {s}.accept(p_place, p_rank, p_lane, p_session, null, null, 'queue', p_body, p_route, p_dedupe,
    ''::bytea, p_repeat, true, null, p_ask, p_token, p_node, p_claims);
  update {s}.message m set state = 'done', ended_at = clock_timestamp(),
      reason = p_state || ' by message ' || r.id where m.asked = p_ask and m.state = 'waiting';
  return query select r.id, r.is_new, r.same_body, r.state, r.owner, r.before;
end $$;
"""
