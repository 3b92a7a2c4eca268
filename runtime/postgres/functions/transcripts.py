"""Transcripts: appended to, replaced and put away, and write leases on them."""

TRANSCRIPTS = """
-- Whether another run holds the write lease. It ends with its time, and with the node of its holder.
create function {s}.is_locked(t {s}.session, p_writer bigint) returns boolean language sql as $$
  select t.write_nonce is not null and t.write_nonce is distinct from p_writer and t.write_until > clock_timestamp()
    and exists (select from {s}.node n where n.id = t.write_node) $$;

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
  if p_writer is not null and t.write_nonce is distinct from p_writer then
    return query select 'unlocked'::text, 0::bigint, t.incarnation; return;
  end if;
  if {s}.is_locked(t, p_writer) then
    return query select 'busy'::text, 0::bigint, t.incarnation; return;
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
declare t {s}.session; done bigint; which int;
begin
  t := {s}.locked(p_place);
  if not exists (select from {s}.node n where n.id = p_node for key share) then
    return query select 'lost'::text, t.fence, t.incarnation; return;
  end if;
  select max(e.seq), max(e.incarnation) into done, which from {s}.entry e where e.token = p_token;
  if done is not null then
    return query select 'ok'::text, done + 1, which; return;
  end if;
  if p_writer is not null and t.write_nonce is distinct from p_writer then
    return query select 'unlocked'::text, 0::bigint, t.incarnation; return;
  end if;
  if {s}.is_locked(t, p_writer) then
    return query select 'busy'::text, 0::bigint, t.incarnation; return;
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
  if not exists (select from {s}.node n where n.id = p_node for key share) then return false; end if;
  update {s}.session t set write_nonce = p_nonce, write_node = p_node,
      write_until = clock_timestamp() + make_interval(secs => p_seconds)
    where t.place = p_place and not {s}.is_locked(t, p_nonce);
  return found;
end $$;

create function {s}.write_lease_left(p_place text, p_nonce bigint) returns void language sql as $$
  update {s}.session t set write_nonce = null, write_until = null, write_node = null
    where t.place = p_place and t.write_nonce = p_nonce $$;

create function {s}.replaced(
  p_place text, p_token bigint, p_writer bigint, p_incarnation int, p_through bigint, p_lines text[])
returns table (code text, seq bigint, incarnation int) language plpgsql as $$
#variable_conflict use_column
declare t {s}.session; n bigint := cardinality(p_lines);
begin
  select * into t from {s}.session x where x.place = p_place for update;
  if t.changed_by = p_token then
    return query select 'ok'::text, t.changed_to, t.incarnation; return;
  end if;
  if t.write_nonce is distinct from p_writer or t.write_until < clock_timestamp()
      or not exists (select from {s}.node n where n.id = t.write_node for key share) then
    return query select 'unlocked'::text, 0::bigint, t.incarnation; return;
  end if;
  if t.incarnation <> p_incarnation or p_through > t.next_seq then
    return query select 'replaced'::text, 0::bigint, t.incarnation; return;
  end if;
  insert into {s}.entry (place, incarnation, seq, fence, token, line)
    select p_place, t.incarnation + 1, l.n - 1, t.fence, null, l.line from unnest(p_lines) with ordinality l(line, n)
    union all
    select p_place, t.incarnation + 1, e.seq - p_through + n, e.fence, e.token, e.line from {s}.entry e
      where e.place = p_place and e.incarnation = t.incarnation and e.seq >= p_through;
  delete from {s}.entry e where e.place = p_place and e.incarnation = t.incarnation;
  update {s}.session x set incarnation = t.incarnation + 1, next_seq = n + t.next_seq - p_through,
    changed_by = p_token, changed_to = n + t.next_seq - p_through where x.place = p_place;
  return query select 'ok'::text, n + t.next_seq - p_through, t.incarnation + 1;
end $$;

create function {s}.put_away(
  p_place text, p_node bigint, p_fence bigint, p_nonce bigint, p_keep boolean, p_token bigint)
returns table (code text, entries bigint, incarnation int) language plpgsql as $$
#variable_conflict use_column
declare t {s}.session;
begin
  select * into t from {s}.session x where x.place = p_place for update;
  if not found or t.owner is distinct from p_node or t.fence <> p_fence or t.nonce is distinct from p_nonce then
    return query select 'lost'::text, 0::bigint, t.incarnation; return;
  end if;
  if t.changed_by = p_token then
    return query select 'ok'::text, t.changed_to, t.incarnation - 1; return;
  end if;
  if t.next_seq = 0 then
    return query select 'ok'::text, 0::bigint, t.incarnation; return;
  end if;
  if not p_keep then
    delete from {s}.entry e where e.place = p_place and e.incarnation = t.incarnation;
  end if;
  update {s}.session x set incarnation = t.incarnation + 1, next_seq = 0, write_nonce = null, write_until = null,
    write_node = null, changed_by = p_token, changed_to = t.next_seq where x.place = p_place;
  return query select 'ok'::text, t.next_seq, t.incarnation;
end $$;
"""
